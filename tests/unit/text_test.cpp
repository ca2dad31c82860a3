#include "parallel/base/text.h"

#include "tests/support/catch.h"

using namespace moetune;

TEST_CASE("what a terminal would act on is shown as its code", "[text]") {
  struct Row {
    std::string text, shown, line;
  };
  // Bytes and code points by RFC 3629 and the Unicode charts of controls.
  const Row rows[] = {
      {"plain, (any) \"text\" \\", "plain, (any) \"text\" \\", "plain, (any) \"text\" \\"},
      {"two\nlines\tand a tab", "two\nlines\tand a tab", "two\\nlines\\tand a tab"},
      {"\x1b[31mred\x1b[0m", "\\u001b[31mred\\u001b[0m", "\\u001b[31mred\\u001b[0m"},
      {"over\rwritten\b\a", "over\\u000dwritten\\u0008\\u0007", "over\\u000dwritten\\u0008\\u0007"},
      {std::string("nul\0.", 5), "nul\\u0000.", "nul\\u0000."},
      {"\x7f", "\\u007f", "\\u007f"},
      {"\xc2\x9b\x33\x31m", "\\u009b31m", "\\u009b31m"},            // C1: CSI in one character
      {"\xe2\x80\xaetxt.exe", "\\u202etxt.exe", "\\u202etxt.exe"},  // right-to-left override
      {"\xe2\x81\xa6", "\\u2066", "\\u2066"},
      {"\xe2\x80\xa8", "\\u2028", "\\u2028"},
      {"gr\xc3\xbc\xc3\x9f \xe4\xbd\xa0 \xf0\x9f\x98\x80", "gr\xc3\xbc\xc3\x9f \xe4\xbd\xa0 \xf0\x9f\x98\x80",
       "gr\xc3\xbc\xc3\x9f \xe4\xbd\xa0 \xf0\x9f\x98\x80"},
      {"\xff\xfe", "\\xff\\xfe", "\\xff\\xfe"},
      {"\xc3", "\\xc3", "\\xc3"},                                            // cut
      {"\xe4\xbd", "\\xe4\\xbd", "\\xe4\\xbd"},                              // cut
      {"\x80", "\\x80", "\\x80"},                                            // goes on without a beginning
      {"\xc0\x8a", "\\xc0\\x8a", "\\xc0\\x8a"},                              // a line end in two bytes: overlong
      {"\xed\xa0\x80", "\\xed\\xa0\\x80", "\\xed\\xa0\\x80"},                // a surrogate
      {"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80", "\\xf4\\x90\\x80\\x80"},  // beyond U+10FFFF
  };
  for (const Row& row : rows) {
    INFO(row.shown);
    CHECK(printable(row.text) == row.shown);
    CHECK(printable_line(row.text) == row.line);
  }
}
