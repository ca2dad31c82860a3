#include "tests/support/catch.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <optional>
#include <sstream>
#include <string>

#include "parallel/base/error.h"
#include "parallel/base/units.h"
#include "tests/support/message_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/run/metrics/crc32c.h"
#include "trainer/run/metrics/log_file.h"
#include "trainer/run/metrics/progress.h"
#include "trainer/run/metrics/tensorboard.h"

using namespace moetune;

namespace {

std::string read_all(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

template <typename Number>
Number number_at(const std::string& bytes, size_t offset) {
  Number number;
  REQUIRE(offset + sizeof(number) <= bytes.size());
  std::memcpy(&number, bytes.data() + offset, sizeof(number));
  return number;
}

// The data of the record at `offset`, which moves behind it. Undoes the mask as the format defines it.
std::string next_record(const std::string& file, size_t& offset) {
  const auto crc_of = [&](size_t at) {
    const auto rotated = number_at<std::uint32_t>(file, at) - 0xa282ead8u;
    return (rotated >> 17) | (rotated << 15);
  };
  const auto length = number_at<std::uint64_t>(file, offset);
  CHECK(crc_of(offset + 8) == crc32c(file.substr(offset, 8)));
  const std::string data = file.substr(offset + 12, length);
  REQUIRE(data.size() == length);
  CHECK(crc_of(offset + 12 + length) == crc32c(data));
  offset += 16 + length;
  return data;
}

StepFigures figures_of(std::int64_t step, double elapsed_s) {
  return {.step = step,
          .num_steps = 500,
          .loss = 1.93,
          .grad_norm = 0.871,
          .lr = 2e-4,
          .tokens_per_s = 8900,
          .expert_max_over_mean = 1.43,
          .memory_bytes = std::int64_t{13207024435},
          .step_s = 2.0,
          .elapsed_s = elapsed_s};
}

}  // namespace

TEST_CASE("CRC-32C of known inputs", "[metrics]") {
  CHECK(crc32c("123456789") == 0xe3069283u);
  CHECK(crc32c("") == 0u);
  // RFC 3720, appendix B.4
  CHECK(crc32c(std::string(32, '\0')) == 0x8a9136aau);
  CHECK(crc32c(std::string(32, '\xff')) == 0x62a8ab43u);
  std::string rising(32, '\0');
  for (int i = 0; i < 32; ++i) rising[i] = static_cast<char>(i);
  CHECK(crc32c(rising) == 0x46dd794eu);
}

TEST_CASE("TensorBoard files hold what event.proto says", "[metrics]") {
  const TemporaryFolder folder;
  TensorBoard board(folder / "tensorboard", std::nullopt);
  board.write(300, {{"a/b", 1.5f}, {"c", -2.0f}});
  CHECK(board.path().find("/tensorboard/events.out.tfevents.") != std::string::npos);

  const std::string file = read_all(board.path());
  size_t offset = 0;
  const std::string first = next_record(file, offset), second = next_record(file, offset);
  CHECK(offset == file.size());
  // 09: wall_time, 8 bytes; 10 00: step 0; 1a 0d: file_version, 13 bytes
  CHECK(first.substr(0, 1) == "\x09");
  CHECK(first.substr(9) == std::string("\x10\x00\x1a\x0d", 4) + "brain.Event:2");
  const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  CHECK(std::abs(number_at<double>(first, 1) - now) < 60);
  // 10 ac 02: step 300; 2a 16: summary, 22 bytes; 0a 0a: value of 10 bytes; 0a 03: tag; 15: simple_value, 4 bytes
  CHECK(second.substr(9) == std::string("\x10\xac\x02\x2a\x16"
                                        "\x0a\x0a\x0a\x03"
                                        "a/b"
                                        "\x15\x00\x00\xc0\x3f"
                                        "\x0a\x08\x0a\x01"
                                        "c"
                                        "\x15\x00\x00\x00\xc0",
                                        27));
}

TEST_CASE("a resumed TensorBoard file drops the points after the resumed step", "[metrics]") {
  const TemporaryFolder folder;
  const TensorBoard before(folder.path(), std::nullopt);
  const TensorBoard resumed(folder.path(), 100);
  CHECK(before.path() < resumed.path());  // readers take files in the order of their names
  const std::string file = read_all(resumed.path());
  size_t offset = 0;
  next_record(file, offset);
  // 10 65: step 101, the first to drop; 3a 02: session_log of 2 bytes; 08 01: status START
  CHECK(next_record(file, offset).substr(9) == "\x10\x65\x3a\x02\x08\x01");
  CHECK(offset == file.size());
}

TEST_CASE("log.jsonl grows line by line", "[metrics]") {
  const TemporaryFolder folder;
  const std::string path = folder / "log.jsonl";
  LogFile log(path, std::nullopt);
  log.append({{"kind", "start"}, {"world", 2}});
  CHECK(read_all(path) == "{\"kind\":\"start\",\"world\":2}\n");  // on disk at once, members in the given order
  log.append({{"kind", "step"}, {"step", 1}, {"loss", std::numeric_limits<double>::quiet_NaN()}, {"note", "a\nb\xff"}});
  CHECK(read_all(path) ==
        "{\"kind\":\"start\",\"world\":2}\n{\"kind\":\"step\",\"step\":1,\"loss\":null,\"note\":\"a\\nb\xef\xbf\xbd\"}"
        "\n");
  CHECK_THROWS_AS(LogFile(path, std::nullopt), UserError);  // a fresh run never writes over another's
  CHECK_THROWS_AS(LogFile("/nonexistent/log.jsonl", std::nullopt), UserError);
}

TEST_CASE("a resumed log loses the steps that are run again", "[metrics]") {
  const TemporaryFolder folder;
  const std::string path = folder / "log.jsonl";
  const std::string kept =
      "{\"kind\":\"start\"}\n{\"kind\":\"step\",\"step\":99}\n{\"kind\":\"step\",\"step\":100}\n{\"kind\":\"save\","
      "\"step\":100}\n";
  const auto resume = [&](const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
    LogFile(path, 100).append({{"kind", "start"}});
    return read_all(path);
  };
  const std::string start = "{\"kind\":\"start\"}\n";
  CHECK(resume(kept) == kept + start);
  CHECK(resume(kept + "{\"kind\":\"step\",\"step\":101}\n{\"kind\":\"end\"}\n") == kept + start);
  CHECK(resume(kept + "{\"kind\":\"step\",\"st") == kept + start);
  CHECK(resume(kept + "{\"kind\":\"eval\",\"step\":100}") == kept + start);  // whole, but its newline never came
  CHECK(resume("") == start);
  const std::string foreign = message_of<UserError>([&] { resume("{\"kind\":\"start\"}\nnonsense\n"); });
  CHECK(contains(foreign, "log.jsonl:2: not a JSON object"));
  std::filesystem::remove(path);
  LogFile(path, 0).append({{"kind", "start"}});  // nothing to cut
  CHECK(read_all(path) == start);
}

TEST_CASE("amounts are written for people", "[metrics]") {
  CHECK(bytes_text(812) == "812 B");
  CHECK(bytes_text(1536) == "1.50 KiB");
  CHECK(bytes_text(13207024435) == "12.3 GiB");
  CHECK(count_text(0) == "0");
  CHECK(count_text(950) == "950");
  CHECK(count_text(8900) == "8.90k");
  CHECK(count_text(999.7) == "1.00k");
  CHECK(count_text(999700) == "1.00M");
  CHECK(count_text(671026419200.0) == "671B");
  CHECK(duration_text(7.2) == "0:07");
  CHECK(duration_text(59.7) == "1:00");
  CHECK(duration_text(754) == "12:34");
  CHECK(duration_text(10805) == "3:00:05");
  CHECK(duration_text(2 * 86400 + 3 * 3600 + 245) == "2d 03:04:05");
  CHECK(duration_text(-1) == "--");
  CHECK(duration_text(std::nan("")) == "--");
}

TEST_CASE("the progress line", "[metrics]") {
  CHECK(progress_line(figures_of(12, 41), 1673) ==
        "step  12/500   2%  loss 1.9300  grad 0.871  lr 2.00e-04  8.90k tok/s  experts 1.43x  mem 12.3 GiB  0:41  left "
        "27:53");
  StepFigures dense = figures_of(500, 41);
  dense.expert_max_over_mean.reset();
  dense.memory_bytes.reset();
  CHECK(progress_line(dense, 0) ==
        "step 500/500 100%  loss 1.9300  grad 0.871  lr 2.00e-04  8.90k tok/s  0:41  left 0:00");
}

TEST_CASE("a terminal shows one line that is rewritten", "[metrics]") {
  std::ostringstream out;
  Progress progress(out, {.terminal = true, .columns = 20});
  progress.step(figures_of(1, 2));
  progress.step(figures_of(2, 4));
  CHECK(out.str() == "\r\x1b[Kstep   1/500   0%  \r\x1b[Kstep   2/500   0%  ");
  out.str("");
  progress.make_room();
  progress.make_room();
  CHECK(out.str() == "\r\x1b[K");
  progress.finish();
  CHECK(out.str() == "\r\x1b[K");
  progress.step(figures_of(3, 6));
  progress.finish();
  CHECK(out.str().back() == '\n');
}

TEST_CASE("elsewhere plain lines come now and then", "[metrics]") {
  std::ostringstream out;
  Progress progress(out, {.terminal = false, .every_s = 10, .every_steps = 50});
  for (std::int64_t step = 1; step <= 500; ++step) {
    const double elapsed_s =
        step <= 20 ? 2.0 * static_cast<double>(step) : 40.0 + 0.01 * static_cast<double>(step - 20);
    progress.step(figures_of(step, elapsed_s));
  }
  progress.finish();
  std::istringstream lines(out.str());
  std::string steps, line;
  while (std::getline(lines, line)) steps += line.substr(5, 3) + " ";
  // By the clock up to step 20 (2 s each: 12 s, then 10 s apart), by the count after, and the last one.
  CHECK(steps == "  1   6  11  16  66 116 166 216 266 316 366 416 466 500 ");
  CHECK(out.str().find('\r') == std::string::npos);
}

TEST_CASE("the time left follows the recent steps and forgets a slow first one", "[metrics]") {
  std::ostringstream out;
  Progress progress(out, {.terminal = false, .every_s = 0});
  StepFigures figures = figures_of(1, 60);
  figures.step_s = 60;
  progress.step(figures);
  figures.step_s = 1;
  for (figures.step = 2; figures.step <= 100; ++figures.step) progress.step(figures);
  CHECK(out.str().find("step   1/500   0%  loss 1.9300  grad 0.871  lr 2.00e-04  8.90k tok/s  experts 1.43x  mem 12.3 "
                       "GiB  1:00  left 8:19:00") != std::string::npos);
  CHECK(out.str().find("1:00  left 8:18\n") != std::string::npos);  // step 2: 498 steps of 1 s
  CHECK(out.str().find("1:00  left 6:40\n") != std::string::npos);  // step 100: 400 steps of 1 s
}
