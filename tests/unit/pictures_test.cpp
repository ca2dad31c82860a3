// Pictures of meshes: words have room on every mesh, groups are those of docs/parallelism.md, fetches those of its
// formula.
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "parallel/base/error.h"
#include "tests/support/catch.h"
#include "trainer/plan/pictures/layer_picture.h"
#include "trainer/plan/pictures/mesh_picture.h"
#include "trainer/plan/pictures/svg.h"
#include "trainer/plan/pictures/weights_picture.h"
#include "trainer/recipe/recipe_load.h"

using namespace moetune;

namespace {

PlannedMesh planned(std::vector<std::string> overrides, int64_t ranks_per_host = 0) {
  const std::string folder = MOETUNE_SOURCE_DIR "/docs/pictures";
  overrides.push_back("model.path=" + folder);
  return plan_mesh(load_recipe(folder + "/example.yaml", overrides), 0, ranks_per_host);
}

std::string between(const std::string& text, const std::string& before, const std::string& after) {
  const size_t begin = text.find(before);
  if (begin == std::string::npos) return "";
  return text.substr(begin + before.size(), text.find(after, begin + before.size()) - begin - before.size());
}

std::vector<std::string> elements(const std::string& svg, const std::string& name) {
  std::vector<std::string> found;
  const std::string opening = "  <" + name + " ";
  for (size_t begin = svg.find(opening); begin != std::string::npos; begin = svg.find(opening, begin + 1)) {
    found.push_back(svg.substr(begin, svg.find('\n', begin) - begin));
  }
  return found;
}

struct Words {
  std::string words;
  double left, right, top, bottom;
};

std::vector<Words> words_of(const std::string& svg) {
  std::vector<Words> found;
  for (const std::string& element : elements(svg, "text")) {
    const std::string words = between(element, ">", "<"), size = between(element, "font-size=\"", "\""),
                      anchor = between(element, "text-anchor=\"", "\"");
    const TextStyle style{.bold = element.find("bold") != std::string::npos,
                          .size = size.empty() ? 12.0 : std::atof(size.c_str())};
    const double x = std::atof(between(element, " x=\"", "\"").c_str()),
                 y = std::atof(between(element, " y=\"", "\"").c_str()), width = Svg::text_width(words, style);
    const double left = anchor == "middle" ? x - width / 2 : anchor == "end" ? x - width : x;
    found.push_back({words, left, left + width, y - style.size * 0.72, y});
  }
  return found;
}

/// Words that end outside the picture or lie on others.
std::string without_room(const std::string& svg) {
  std::string found;
  const std::vector<Words> all = words_of(svg);
  for (size_t i = 0; i < all.size(); ++i) {
    const Words& a = all[i];
    if (a.left < 0.0 || a.right > Svg::kWidth) found += str("'", a.words, "' ends outside; ");
    for (size_t j = 0; j < i; ++j) {
      const Words& b = all[j];
      if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom) {
        found += str("'", a.words, "' lies on '", b.words, "'; ");
      }
    }
  }
  return found;
}

}  // namespace

TEST_CASE("pictures: words are taken to be as wide as Helvetica has them, or wider") {
  // Adobe's metrics, thousandths of an em: H 722 e 556 l 222 v 500 t 278 i 222 c 500 a 556; G 778 B 667 M 833 m 833 w
  // 722 0-9 556.
  CHECK(Svg::text_width("Helvetica", {.size = 1000}) >= 4112);
  CHECK(Svg::text_width("Helvetica", {.size = 1000}) < 1.25 * 4112);
  CHECK(Svg::text_width("GBMmw0123456789", {.size = 1000}) >= 778 + 667 + 833 + 833 + 722 + 5560);
}

TEST_CASE("pictures: marks of XML in words are escaped") {
  Svg svg("a & b");
  svg.text(20, 20, "T < U & \"x\" > 0");
  const std::string text = svg.finish();
  CHECK(text.find("<title>a &amp; b</title>") != std::string::npos);
  CHECK(text.find(">T &lt; U &amp; &quot;x&quot; &gt; 0</text>") != std::string::npos);
}

TEST_CASE("pictures: no words lie on others or end outside, on any mesh") {
  const std::vector<std::vector<std::string>> meshes = {{"mesh.dp=1", "mesh.ep=1", "mesh.tp=1"},
                                                        {"mesh.dp=1", "mesh.ep=16", "mesh.tp=1"},
                                                        {"mesh.dp=1", "mesh.ep=2", "mesh.tp=8"},
                                                        {"mesh.dp=3", "mesh.ep=1", "mesh.tp=1"},
                                                        {"mesh.dp=16", "mesh.ep=8", "mesh.tp=1"},
                                                        {"mesh.dp=1", "mesh.ep=1", "mesh.tp=2"},
                                                        {"mesh.dp=2", "mesh.ep=2", "mesh.tp=2"},
                                                        {"mesh.dp=2", "mesh.ep=2", "mesh.tp=2", "mesh.expert_tp=2"},
                                                        {"mesh.dp=1", "mesh.ep=2", "mesh.tp=8", "mesh.expert_tp=8"}};
  for (const auto& mesh : meshes) {
    for (const std::string shard : {"none", "all", "node"}) {
      for (const std::string offload : {"none", "all", "24GiB"}) {
        std::vector<std::string> overrides = mesh;
        overrides.push_back("mesh.shard=" + shard);
        overrides.push_back("offload.frozen=" + offload);
        const PlannedMesh plan = planned(overrides);
        INFO(to_string(plan.shape) << ", shard " << shard << ", offload " << offload);
        CHECK(without_room(mesh_picture(plan)) == "");
        CHECK(without_room(layer_picture(plan)) == "");
        CHECK(without_room(weights_picture(plan)) == "");
      }
    }
  }
}

TEST_CASE("pictures: ranks of a group have one colour, of two groups two") {
  // rank = (dp * 2 + ep) * 2 + tp; the groups by hand, in the order of the picture: ep, tp, expert_replicas, data.
  const std::vector<std::vector<int>> expected = {
      {0, 1, 0, 1, 2, 3, 2, 3}, {0, 0, 1, 1, 2, 2, 3, 3}, {0, 0, 1, 1, 0, 0, 1, 1}, {0, 1, 0, 1, 0, 1, 0, 1}};
  const std::string svg = mesh_picture(planned({}, 4));
  std::vector<std::string> fills;  // of the boxes whose words are a number
  std::string fill;
  for (size_t begin = 0, end; (end = svg.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string line = svg.substr(begin, end - begin), words = between(line, ">", "<");
    if (line.rfind("  <rect", 0) == 0) fill = between(line, "fill=\"", "\"");
    if (line.rfind("  <text", 0) == 0 && words.size() == 1 && words[0] >= '0' && words[0] <= '7') fills.push_back(fill);
  }
  REQUIRE(fills.size() == 32);
  for (size_t kind = 0; kind < 4; ++kind) {
    std::map<std::string, int> group_of;
    for (size_t rank = 0; rank < 8; ++rank) {
      const auto [found, is_new] = group_of.emplace(fills[kind * 8 + rank], expected[kind][rank]);
      INFO("kind " << kind << ", rank " << rank);
      CHECK(found->second == expected[kind][rank]);
    }
    CHECK(group_of.size() == (kind < 2 ? 4 : 2));
  }
}

TEST_CASE("pictures: the bytes of a layer are those of docs/parallelism.md") {
  // T = 32 sequences of 4096 tokens on 4 places, halved by TP; C = 1536 + 512 + 64, D = 7168, K = 8, 2 bytes a number.
  const std::string svg = layer_picture(planned({}, 4));
  CHECK(svg.find(">(TP-1) T C b = 66.0 MiB<") != std::string::npos);  // 16384 * 2112 * 2 = 69,206,016
  CHECK(svg.find(">(TP-1) T D b = 224 MiB<") != std::string::npos);   // 16384 * 7168 * 2 = 234,881,024
  CHECK(svg.find(">twice that: 896 MiB<") != std::string::npos);      // of (TP-1) T 2 D b
  // 16384 * (2 * 14336 + 8 * 4) = 470,286,336, to the one other rank
  CHECK(svg.find(">at most 448 MiB<") != std::string::npos);
  // 3/4 of 128 experts of 3 * 7168 * 2048 numbers, 0.5 + 4/64 bytes each
  CHECK(svg.find(">experts gathered: 2.21 GiB<") != std::string::npos);
}

TEST_CASE("pictures: experts in parts") {
  const std::string layer = layer_picture(planned({"mesh.expert_tp=2"}, 4)),
                    mesh = mesh_picture(planned({"mesh.expert_tp=2"}, 4));
  // z, weights, numbers of experts: 16384 * (7168 * 2 + 8 * 4) = 235,405,312
  CHECK(layer.find(">224 MiB<") != std::string::npos);
  // z, d y, ... of the rows of both ranks: 32768 * (2 * 14336 + 8 * 4) = 940,572,672
  CHECK(layer.find(">at most 897 MiB<") != std::string::npos);
  CHECK(mesh.find(">F 1024-2047: shard 2 of 2<") != std::string::npos);  // of 2048, on two DP ranks
}

TEST_CASE("pictures: a step fetches 2 (n - 2) slabs") {
  const auto dark = [](const std::string& svg) {
    int64_t count = 0;
    for (const std::string& box : elements(svg, "rect")) {
      count += box.find(str("fill=\"", colour::kFetch, "\"")) != std::string::npos;
    }
    return count;
  };
  CHECK(dark(weights_picture(planned({}))) == 2 * (6 - 2) + 1);  // six layers are drawn; one box more is the legend's
  CHECK(dark(weights_picture(planned({"mesh.shard=none", "offload.frozen=none"}))) == 0);
}
