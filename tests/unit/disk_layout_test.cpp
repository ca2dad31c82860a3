// The catalogue names what building a model reads, no more and no less.
#include "tests/support/catch.h"

#include <map>

#include "moe/disk_layout.h"
#include "moe/families/family.h"
#include "moe/model.h"
#include "tests/support/tiny_run.h"

using namespace moetune;

namespace {

/// Notes what is read of it.
class Recorder final : public WeightSource {
 public:
  explicit Recorder(const Blueprint& config) : source_(make_random_weights(config, 1, at::kCPU)) {}
  at::Tensor read(const std::string& name, at::IntArrayRef shape) override {
    reads[name] = shape.vec();
    return source_->read(name, shape);
  }
  at::Tensor read_row(const std::string& name, int64_t row, at::IntArrayRef shape) override {
    return source_->read_row(name, row, shape);
  }
  std::vector<StoredTensor> tensors() const override { return {}; }
  void require_weight(const std::string&) const override {}
  bool has(const std::string&) const override { return true; }
  int64_t bytes_read() const override { return 0; }
  std::string identity() const override { return source_->identity(); }
  std::map<std::string, std::vector<int64_t>> reads;

 private:
  std::unique_ptr<WeightSource> source_;
};

}  // namespace

TEST_CASE("the catalogue is what a model is built from", "[export]") {
  for (const int variant : {0, 1, 2}) {
    INFO("variant " << variant);
    nlohmann::ordered_json json = tiny_config();
    json["num_nextn_predict_layers"] = 1;
    if (variant == 1) json["q_lora_rank"] = nullptr;
    if (variant == 2) {
      json["n_shared_experts"] = 0;
      json["tie_word_embeddings"] = true;
    }
    const Blueprint config = parse_blueprint(json, "tiny");
    const bool with_mtp = variant != 1;
    Recorder source(config);
    auto exchange = make_local_exchange();
    ModelOptions options;
    options.base = BaseFormat::kFp32;
    options.placement = {0, config.router.experts, config.router.experts};
    options.exchange = exchange.get();
    options.with_mtp = with_mtp;
    const auto model = build_model(config, source, options);
    std::map<std::string, std::vector<int64_t>> listed;
    std::map<std::string, Held> held;
    for (const DiskTensor& tensor : disk_tensors(config, with_mtp)) {
      CHECK(listed.emplace(tensor.name, tensor.shape).second);
      held[tensor.name] = tensor.held;
    }
    CHECK(listed == source.reads);
    size_t frozen = 0;
    for (const auto& [name, kind] : held) {
      frozen += kind == Held::kLinear && name.find(".experts.") == std::string::npos;
    }
    size_t expected = 0;
    for (const FrozenSlab& slab : model->slabs->all()) {
      for (const FrozenSlab::Held& frozen_map : slab.held()) {
        if (slab.kind() == SlabKind::kExperts || frozen_map.name.find("eh_proj") != std::string::npos) continue;
        ++expected;
        CHECK(held.at(frozen_map.name) == Held::kLinear);
      }
    }
    CHECK(frozen == expected);
    for (const PlainTensor& tensor : model->plain) {
      CHECK(held.at(tensor.name) ==
            (tensor.name.find("gate.weight") != std::string::npos ? Held::kStored : Held::kCompute));
    }
  }
}
