#include "trainer/state/saved_state.h"

#include <algorithm>
#include <charconv>
#include <functional>

#include <nlohmann/json.hpp>

#include "parallel/base/error.h"
#include "parallel/bytes/tensor_io.h"

namespace moetune {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kRouterBias = "router_bias/";

int64_t product(const std::vector<int64_t>& shape) {
  int64_t numel = 1;
  for (const int64_t size : shape) numel *= size;
  return numel;
}

/// What two boxes of one tensor share; of shape zero somewhere where they share nothing.
TensorBlock overlap(const TensorBlock& a, const TensorBlock& b) {
  TensorBlock shared = a;
  for (size_t d = 0; d < a.at.size(); ++d) {
    shared.at[d] = std::max(a.at[d], b.at[d]);
    shared.shape[d] = std::max<int64_t>(0, std::min(a.at[d] + a.shape[d], b.at[d] + b.shape[d]) - shared.at[d]);
  }
  return shared;
}

/// The rows of a box along the first dim that hold numbers first .. first + count - 1.
TensorBlock rows_with(const TensorBlock& block, int64_t first, int64_t count) {
  const int64_t row = block.numel() / block.shape[0];
  TensorBlock rows = block;
  const int64_t first_row = first / row;
  rows.at[0] += first_row;
  rows.shape[0] = (first + count + row - 1) / row - first_row;
  return rows;
}

bool is_box(const TensorBlock& block) {
  if (block.whole.empty() || block.at.size() != block.whole.size() || block.shape.size() != block.whole.size()) {
    return false;
  }
  constexpr int64_t kMostNumbers = int64_t{1} << 48;  // of a tensor, far from what overflows
  int64_t numbers = 1;
  for (size_t d = 0; d < block.whole.size(); ++d) {
    if (block.at[d] < 0 || block.shape[d] < 1 || block.whole[d] < 1 || block.whole[d] > kMostNumbers / numbers) {
      return false;
    }
    if (block.shape[d] > block.whole[d] || block.at[d] > block.whole[d] - block.shape[d]) return false;
    numbers *= block.whole[d];
  }
  return true;
}

/// The block of a router bias's name; UserError where the name ends in no number.
int64_t block_of_bias(const SafetensorsFile& file, const std::string& name) {
  int64_t block = 0;
  const char* const end = name.data() + name.size();
  const auto [behind, error] = std::from_chars(name.data() + kRouterBias.size(), end, block);
  if (error != std::errc() || behind != end || block < 0) {
    throw UserError(str(file.path(), ": ", name, " names no block of the model"));
  }
  return block;
}

}  // namespace

int64_t TensorBlock::numel() const { return product(shape); }

TensorBlock block_of(const Parameter& parameter) {
  const ParameterInfo& info = parameter.info();
  TensorBlock block{parameter.working.sizes().vec(), std::vector<int64_t>(parameter.working.dim(), 0),
                    parameter.working.sizes().vec()};
  if (info.num_experts > 0) {
    block.whole[0] = info.num_experts;
    block.at[0] = info.first_expert;
  }
  if (!info.part.is_whole()) {
    block.whole[info.part.dim] = info.part.total;
    block.at[info.part.dim] = info.part.first;
  }
  return block;
}

std::string run_metadata(const TensorBlock& block, int64_t first, const ParameterInfo& info) {
  nlohmann::ordered_json json = {{"whole", block.whole}, {"at", block.at},      {"shape", block.shape},
                                 {"first", first},       {"group", info.group}, {"layer", info.layer.number()}};
  if (!info.joint_name.empty()) json["joint"] = info.joint_name;
  if (!info.experts.empty()) json["experts"] = info.experts;
  return json.dump();
}

std::string saved_name(SavedKind kind, const std::string& name) {
  constexpr const char* kPrefixes[] = {"master/", "first_moment/", "second_moment/"};
  return kPrefixes[static_cast<int>(kind)] + name;
}

std::string saved_bias_name(int64_t block) { return str(kRouterBias, block); }

SavedState::SavedState(const fs::path& checkpoint) : checkpoint_(checkpoint), manifest_(read_manifest(checkpoint)) {
  for (const auto& [file_name, entry] : manifest_.files) {
    if (fs::path(file_name).extension() != ".safetensors") continue;
    const SafetensorsFile& file =
        *files_.emplace_back(std::make_unique<SafetensorsFile>((checkpoint / file_name).string(), Links::kRefuse));
    for (const auto& [name, value] : file.metadata()) {
      if (name != "format") add_run(file, name, value);
    }
    for (const std::string& name : file.names()) {
      if (name.starts_with(kRouterBias)) biases_[block_of_bias(file, name)] = &file;
    }
  }
  require_whole();
}

void SavedState::add_run(const SafetensorsFile& file, const std::string& name, const std::string& metadata) {
  TensorBlock block;
  About& about = about_[name];
  int64_t first = 0;
  try {
    const auto json = nlohmann::json::parse(metadata);
    json.at("whole").get_to(block.whole);
    json.at("at").get_to(block.at);
    json.at("shape").get_to(block.shape);
    json.at("first").get_to(first);
    if (json.contains("group")) json.at("group").get_to(about.group);
    if (json.contains("joint")) json.at("joint").get_to(about.joint);
    if (json.contains("layer")) about.layer = json.at("layer").get<int64_t>();
    if (json.contains("experts")) json.at("experts").get_to(about.experts);
  } catch (const nlohmann::json::exception& error) {
    throw UserError(str(file.path(), ": metadata of ", name, ": ", error.what()));
  }
  const int64_t count = file.at(saved_name(SavedKind::kMaster, name)).numel();
  if (!is_box(block)) throw UserError(str(file.path(), ": metadata of ", name, " is no box of a tensor: ", metadata));
  for (const SavedKind kind : {SavedKind::kMaster, SavedKind::kFirstMoment, SavedKind::kSecondMoment}) {
    const TensorInfo& info = file.at(saved_name(kind, name));
    if (info.shape.size() != 1 || info.numel() != count) {
      throw UserError(moetune::str(file.path(), ": ", info.name, " has shape ", at::IntArrayRef(info.shape),
                                   "; want one run of ", count, " numbers"));
    }
  }
  std::vector<SavedBlock>& blocks = tensors_[name];
  if (!about.experts.empty() &&
      (static_cast<int64_t>(about.experts.size()) != block.whole[0] || block.at.size() < 2 ||
       std::adjacent_find(about.experts.begin(), about.experts.end(), std::greater_equal<>()) != about.experts.end() ||
       about.experts.front() < 0)) {
    throw UserError(
        str(file.path(), ": metadata of ", name, " names experts that are not those of its rows: ", metadata));
  }
  auto found =
      std::find_if(blocks.begin(), blocks.end(), [&](const SavedBlock& saved) { return saved.block == block; });
  if (found == blocks.end()) found = blocks.insert(blocks.end(), {block, {}});
  const auto behind =
      std::find_if(found->runs.begin(), found->runs.end(), [&](const Run& run) { return run.first > first; });
  found->runs.insert(behind, {&file, first, count});
}

const std::string& SavedState::group(const std::string& name) const { return about_.at(name).group; }

const std::string& SavedState::joint(const std::string& name) const { return about_.at(name).joint; }

std::optional<int64_t> SavedState::layer(const std::string& name) const { return about_.at(name).layer; }

ExpertsOfLayers SavedState::chosen_experts() const {
  ExpertsOfLayers chosen;
  for (const auto& [name, about] : about_) {
    if (about.layer && !about.experts.empty()) chosen[*about.layer] = about.experts;
  }
  return chosen;
}

void SavedState::require_whole() const {
  if (tensors_.empty()) throw UserError(str(checkpoint_.string(), ": holds no trained tensor"));
  for (const auto& [name, blocks] : tensors_) {
    auto require = [&](bool holds) {
      if (!holds) {
        throw UserError(str(checkpoint_.string(), ": has not all of ", name,
                            ", or some of it twice; are all ranks' files of one save?"));
      }
    };
    int64_t numbers = 0;
    for (size_t i = 0; i < blocks.size(); ++i) {
      const SavedBlock& saved = blocks[i];
      numbers += saved.block.numel();
      require(saved.block.whole == blocks[0].block.whole);
      for (size_t j = 0; j < i; ++j) require(overlap(saved.block, blocks[j].block).numel() == 0);
      int64_t end = 0;
      for (const Run& run : saved.runs) {
        require(run.first == end);
        end += run.count;
      }
      require(end == saved.block.numel());
    }
    require(numbers == product(blocks[0].block.whole));
  }
}

std::vector<std::string> SavedState::names() const {
  std::vector<std::string> names;
  for (const auto& [name, blocks] : tensors_) names.push_back(name);
  return names;
}

const std::vector<SavedState::SavedBlock>& SavedState::blocks_of(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    throw UserError(str(checkpoint_.string(), ": has no ", name, "; was the run made with another adapter or model?"));
  }
  return found->second;
}

const std::vector<int64_t>& SavedState::shape(const std::string& name) const {
  return blocks_of(name).front().block.whole;
}

at::Tensor SavedState::read_block_rows(SavedKind kind, const std::string& name, const SavedBlock& saved,
                                       int64_t first_row, int64_t num_rows) {
  const int64_t row = saved.block.numel() / saved.block.shape[0];
  const int64_t begin = first_row * row, end = begin + num_rows * row;
  std::vector<at::Tensor> parts;
  for (const Run& run : saved.runs) {
    const int64_t first = std::max(begin, run.first), last = std::min(end, run.first + run.count);
    if (first < last) parts.push_back(read_rows(*run.file, saved_name(kind, name), first - run.first, last - first));
  }
  std::vector<int64_t> shape = saved.block.shape;
  shape[0] = num_rows;
  return (parts.size() == 1 ? parts[0] : at::cat(parts)).view(shape);
}

at::Tensor SavedState::read(SavedKind kind, const std::string& name, const TensorBlock& block) const {
  if (shape(name) != block.whole) {
    throw UserError(moetune::str(checkpoint_.string(), ": ", name, " was saved as ", at::IntArrayRef(shape(name)),
                                 ", this run has ", at::IntArrayRef(block.whole)));
  }
  at::Tensor out;
  if (block.numel() == 0) {
    const TensorInfo& info = blocks_of(name).front().runs.front().file->at(saved_name(kind, name));
    return at::empty(block.shape, *scalar_type_of(info.dtype));
  }
  for (const SavedBlock& saved : blocks_of(name)) {
    const TensorBlock shared = overlap(block, saved.block);
    if (shared.numel() == 0) continue;
    at::Tensor from = read_block_rows(kind, name, saved, shared.at[0] - saved.block.at[0], shared.shape[0]);
    if (shared == block && from.sizes() == at::IntArrayRef(block.shape)) return from;
    if (!out.defined()) out = at::empty(block.shape, from.options());
    at::Tensor to = out.narrow(0, shared.at[0] - block.at[0], shared.shape[0]);
    for (size_t d = 1; d < shared.shape.size(); ++d) {
      from = from.narrow(d, shared.at[d] - saved.block.at[d], shared.shape[d]);
      to = to.narrow(d, shared.at[d] - block.at[d], shared.shape[d]);
    }
    to.copy_(from);
  }
  return out;
}

void SavedState::read(SavedKind kind, const std::string& name, const TensorBlock& block, int64_t first,
                      const at::Tensor& target) const {
  const TensorBlock rows = rows_with(block, first, target.numel());
  const int64_t rows_begin = (rows.at[0] - block.at[0]) * (block.numel() / block.shape[0]);
  target.copy_(read(kind, name, rows).flatten().narrow(0, first - rows_begin, target.numel()));
}

std::vector<int64_t> SavedState::router_blocks() const {
  std::vector<int64_t> blocks;
  for (const auto& [block, file] : biases_) blocks.push_back(block);
  return blocks;
}

at::Tensor SavedState::router_bias(int64_t block) const {
  const auto found = biases_.find(block);
  if (found == biases_.end()) {
    throw UserError(
        str(checkpoint_.string(), ": has no ", saved_bias_name(block), "; was the run made with another model?"));
  }
  return read_tensor(*found->second, saved_bias_name(block));
}

}  // namespace moetune
