#include "trainer/plan/pictures/svg.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "parallel/base/error.h"

namespace moetune {
namespace {

/// "12", "12.5": no more figures than a picture needs, the same on every machine.
std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  std::string shown = text;
  if (shown.ends_with(".0")) shown.resize(shown.size() - 2);
  return shown == "-0" ? "0" : shown;
}

std::string attribute(const char* name, const std::string& value) { return str(" ", name, "=\"", value, "\""); }
std::string attribute(const char* name, double value) { return attribute(name, number(value)); }

std::string escaped(const std::string& words) {
  std::string text;
  for (const char letter : words) {
    switch (letter) {
      case '&': text += "&amp;"; break;
      case '<': text += "&lt;"; break;
      case '>': text += "&gt;"; break;
      case '"': text += "&quot;"; break;
      default: text += static_cast<unsigned char>(letter) < 0x20 ? ' ' : letter;
    }
  }
  return text;
}

/// Of an em, in Helvetica: classes of letters by width, each as wide as its widest.
double letter_width(char letter) {
  const auto among = [&](const char* letters) { return std::string(letters).find(letter) != std::string::npos; };
  if (among("ijl|'.,:;! ")) return 0.28;
  if (among("ft()[]-/I")) return 0.34;
  if (among("mM%@W")) return 0.9;
  if (among("w=+<>") || (letter >= 'A' && letter <= 'Z')) return 0.75;
  return 0.56;
}

}  // namespace

const char* colour::of(int64_t index) {
  static constexpr std::array<const char*, kCount> kColours = {"#8fb8de", "#f2b97f", "#a9d3a1", "#dda6c8",
                                                               "#e6d98c", "#b9b4e4", "#93d1cc", "#cdb79e"};
  return kColours[static_cast<size_t>(index) % kColours.size()];
}

void Svg::reach(double y) { bottom_ = std::max(bottom_, y); }

void Svg::box(const Rect& rect, const char* fill, const char* stroke, double radius) {
  body_ += str("  <rect", attribute("x", rect.x), attribute("y", rect.y), attribute("width", rect.width),
               attribute("height", rect.height), radius > 0.0 ? attribute("rx", radius) : "", attribute("fill", fill),
               stroke == colour::kNone ? "" : attribute("stroke", stroke), "/>\n");
  reach(rect.y + rect.height);
}

void Svg::line(double x1, double y1, double x2, double y2, const char* stroke, bool dashed) {
  body_ += str("  <path d=\"M", number(x1), " ", number(y1), "L", number(x2), " ", number(y2), "\"",
               attribute("stroke", stroke), dashed ? attribute("stroke-dasharray", "3 3") : "", "/>\n");
  reach(std::max(y1, y2));
}

void Svg::arrow(double x1, double y1, double x2, double y2, const char* stroke) {
  constexpr double kHead = 6.0;
  const double length = std::hypot(x2 - x1, y2 - y1), dx = (x2 - x1) / length * kHead, dy = (y2 - y1) / length * kHead;
  line(x1, y1, x2 - dx, y2 - dy, stroke);
  body_ +=
      str("  <path d=\"M", number(x2), " ", number(y2), "L", number(x2 - dx - dy / 2), " ", number(y2 - dy + dx / 2),
          "L", number(x2 - dx + dy / 2), " ", number(y2 - dy - dx / 2), "Z\"", attribute("fill", stroke), "/>\n");
  reach(y2);
}

double Svg::text_width(const std::string& words, const TextStyle& style) {
  double ems = 0.0;
  for (const char letter : words) ems += letter_width(letter);
  return ems * style.size * (style.bold ? 1.08 : 1.0);
}

void Svg::text(double x, double y, const std::string& words, const TextStyle& style) {
  using Anchor = TextStyle::Anchor;
  body_ += str("  <text", attribute("x", x), attribute("y", y), attribute("fill", style.fill),
               style.size == 12.0 ? "" : attribute("font-size", style.size),
               style.bold ? attribute("font-weight", "bold") : "",
               style.anchor == Anchor::kMiddle ? attribute("text-anchor", "middle") : "",
               style.anchor == Anchor::kEnd ? attribute("text-anchor", "end") : "", ">", escaped(words), "</text>\n");
  reach(y + style.size / 4);
}

void Svg::chip(const Rect& rect, const char* fill, const std::string& words, const TextStyle& style) {
  box(rect, fill, colour::kNone, 3.0);
  TextStyle centred = style;
  centred.anchor = TextStyle::Anchor::kMiddle;
  text(rect.x + rect.width / 2, rect.y + rect.height / 2 + style.size * 0.36, words, centred);
}

std::string Svg::finish() const {
  const double height = std::ceil(bottom_ + kMargin);
  return str("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ", number(kWidth), " ", number(height), "\"",
             attribute("width", kWidth), attribute("height", height),
             " font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\">\n  <title>", escaped(title_),
             "</title>\n  <rect", attribute("width", kWidth), attribute("height", height), " rx=\"6\" fill=\"",
             colour::kGround, "\"/>\n", body_, "</svg>\n");
}

}  // namespace moetune
