// A picture as SVG text: boxes, lines and words, put one behind the other. No external fonts or files, a white ground
// that reads on light pages and dark ones.
//
//   Svg svg("Who holds what");
//   svg.box({16, 40, 160, 90}, colour::kPaper, colour::kLine);
//   svg.text(24, 60, "rank 0", {.bold = true});
//   write_text_atomically("mesh.svg", svg.finish());
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace moetune {

/// Those of docs/sweep.svg first.
namespace colour {
constexpr const char* kDown = "#8fb8de";
constexpr const char* kUp = "#f2b97f";
constexpr const char* kFetch = "#1f2933";
constexpr const char* kText = "#1f2933";
constexpr const char* kSoft = "#5b6770";
constexpr const char* kLine = "#d5dbe1";
constexpr const char* kGround = "#ffffff";
constexpr const char* kPaper = "#f4f6f8";
constexpr const char* kNone = "none";
/// Of groups, shards and parts: told apart by most colour-blind eyes for the first four, dark text reads on all of
/// them; they repeat after kCount.
constexpr size_t kCount = 8;
const char* of(int64_t index);
}  // namespace colour

/// In pixels, y downwards.
struct Rect {
  double x = 0.0, y = 0.0, width = 0.0, height = 0.0;
};

struct TextStyle {
  enum class Anchor { kStart, kMiddle, kEnd };
  const char* fill = colour::kText;
  bool bold = false;
  double size = 12.0;
  Anchor anchor = Anchor::kStart;
};

class Svg {
 public:
  static constexpr double kWidth = 740.0;  ///< of every picture: what a page shows without scaling
  static constexpr double kMargin = 16.0;

  explicit Svg(std::string title) : title_(std::move(title)) {}

  void box(const Rect& rect, const char* fill, const char* stroke = colour::kNone, double radius = 0.0);
  void line(double x1, double y1, double x2, double y2, const char* stroke = colour::kLine, bool dashed = false);
  /// A line with a head at its end.
  void arrow(double x1, double y1, double x2, double y2, const char* stroke = colour::kSoft);
  /// `y` is the foot of the letters. It is for the caller to see that the words have room (text_width).
  void text(double x, double y, const std::string& words, const TextStyle& style = {});
  /// A filled rounded box with words in its middle.
  void chip(const Rect& rect, const char* fill, const std::string& words, const TextStyle& style = {});

  /// The whole picture, as high as what was drawn and a margin.
  std::string finish() const;

  /// Not less than the words take in Helvetica or Arial.
  static double text_width(const std::string& words, const TextStyle& style = {});

 private:
  void reach(double y);

  std::string title_, body_;
  double bottom_ = 0.0;
};

}  // namespace moetune
