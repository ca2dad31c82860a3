// The weight store on one rank: what is kept where, what is fetched when, and that each use sees its own bytes.
#include "tests/support/catch.h"

#include <ATen/ATen.h>

#include "parallel/base/error.h"
#include "parallel/bytes/weight_store.h"
#include "parallel/device/host_memory.h"
#include "tests/support/message_of.h"

using namespace moetune;

namespace {

/// A store with slabs 0 .. n-1 of sizes 1000 + s, full of the number s.
struct Filled {
  Filled(int64_t n, SlabTier tier) : store(at::kCPU) {
    for (int64_t s = 0; s < n; ++s) {
      slabs.push_back(store.add({"slab " + std::to_string(s), 1000 + s, tier, 1, nullptr}));
      store.put(slabs.back(), 0, at::full({1000 + s}, s, at::kByte));
    }
  }
  /// Down through the slabs and up again.
  std::vector<int> sweep() const {
    std::vector<int> uses = slabs;
    uses.insert(uses.end(), slabs.rbegin(), slabs.rend());
    return uses;
  }
  void run(const std::vector<int>& uses) {
    for (const int slab : uses) {
      const at::Tensor bytes = store.use(slab);
      CHECK(bytes.numel() == 1000 + slab);
      CHECK((bytes == slab).all().item<bool>());
      store.release(slab);
    }
  }
  WeightStore store;
  std::vector<int> slabs;
};

}  // namespace

TEST_CASE("a slab on the device is handed out where it lies", "[weight_store]") {
  Filled filled(3, SlabTier::kDevice);
  filled.store.schedule(filled.sweep());
  filled.run(filled.sweep());
  CHECK(filled.store.use(1).data_ptr() == filled.store.kept(1).data_ptr());
  CHECK(filled.store.traffic().copied == 0);
  CHECK(filled.store.traffic().gathered == 0);
}

TEST_CASE("slabs on the host are copied once a way, those at the turns not again", "[weight_store]") {
  for (const int64_t n : {1, 2, 3, 7}) {
    INFO(n << " slabs");
    Filled filled(n, SlabTier::kHost);
    // By hand: the first step fetches all on the way down; its way up all but the two at the turn, the two of the
    // bottom being next.
    const auto bytes = [](int64_t first, int64_t end) {
      int64_t sum = 0;
      for (int64_t s = first; s < end; ++s) sum += 1000 + s;
      return sum;
    };
    int64_t expected = bytes(0, n) + (n > 2 ? bytes(0, n - 2) : 0);
    for (int step = 0; step < 3; ++step) {
      filled.store.schedule(filled.sweep());
      filled.run(filled.sweep());
      CHECK(filled.store.traffic().copied == expected);
      expected += n > 2 ? bytes(2, n) + bytes(0, n - 2) : 0;
    }
  }
}

TEST_CASE("the bytes of a step equal their formula wherever the way up ends", "[weight_store]") {
  // Both ways, less the slabs that wait in the two buffers at either turn.
  const auto formula = [](int64_t n, int64_t lowest) {
    if (n <= 2) return int64_t{0};
    int64_t sum = 0;
    for (int64_t s = 0; s < n; ++s) sum += s >= lowest && s < 2 ? 0 : 1000 + s;
    for (int64_t s = lowest; s + 2 < n; ++s) sum += 1000 + s;
    return sum;
  };
  for (const int64_t n : {1, 2, 3, 4, 7}) {
    for (int64_t lowest = 0; lowest < n; ++lowest) {
      INFO(n << " slabs, up to slab " << lowest);
      Filled filled(n, SlabTier::kHost);
      std::vector<int> uses = filled.slabs;
      uses.insert(uses.end(), filled.slabs.rbegin(), filled.slabs.rend() - lowest);
      int64_t before = 0;
      for (int step = 0; step < 4; ++step) {
        before = filled.store.traffic().copied;
        filled.store.schedule(uses);
        filled.run(uses);
      }
      CHECK(filled.store.traffic().copied - before == formula(n, lowest));
      int64_t planned = 0;
      for (const Fetch& fetch : fetches_of_round(uses, Rounds::kFollow).fetches) planned += 1000 + fetch.slab;
      CHECK(planned == formula(n, lowest));
    }
  }
}

TEST_CASE("the next slab is fetched while one is in use, and never into it", "[weight_store]") {
  Filled filled(4, SlabTier::kHost);
  filled.store.schedule(filled.slabs);
  CHECK(filled.store.traffic().copied == 1000 + 1001);
  const at::Tensor first = filled.store.use(0);
  CHECK(filled.store.traffic().copied == 1000 + 1001);
  filled.store.release(0);
  CHECK(filled.store.traffic().copied == 1000 + 1001 + 1002);
  const at::Tensor second = filled.store.use(1);
  CHECK((second == 1).all().item<bool>());
  CHECK((first.narrow(0, 0, 1000) == 2).all().item<bool>());  // gone, as a read after release shows
  CHECK(contains(message_of<InternalError>([&] { filled.store.use(3); }), "used out of turn, next is slab 2"));
  CHECK(contains(message_of<InternalError>([&] { filled.store.release(2); }), "without having been in use"));
  CHECK(contains(message_of<InternalError>([&] { filled.store.schedule({}); }), "while slab slab 1 is in use"));
}

TEST_CASE("what a failed pass has left in use is released", "[weight_store]") {
  Filled filled(4, SlabTier::kHost);
  filled.store.schedule(filled.sweep());
  filled.store.use(0);
  CHECK(contains(message_of<InternalError>([&] { filled.store.schedule(filled.sweep()); }), "slab 0 is in use"));
  filled.store.abandon();
  filled.store.schedule(filled.sweep());
  filled.run(filled.sweep());
}

TEST_CASE("lanes take turns apart, and slabs of the device are not in the way", "[weight_store]") {
  WeightStore store(at::kCPU);
  std::vector<int> uses;
  for (int64_t s = 0; s < 9; ++s) {
    const int slab = store.add(
        {"slab", 64, s % 3 == 0 ? SlabTier::kDevice : SlabTier::kHost, static_cast<int>(s % 3 == 1), nullptr});
    store.put(slab, 0, at::full({64}, s, at::kByte));
    uses.push_back(slab);
  }
  for (int step = 0; step < 2; ++step) {
    store.schedule(uses);
    for (const int slab : uses) {
      CHECK((store.use(slab) == slab).all().item<bool>());
      store.release(slab);
    }
  }
  // Three slabs in each of two lanes, down only: nothing stays for the next way down but what was fetched ahead for it.
  CHECK(store.traffic().copied == 64 * 2 * (3 + 3 + 2));
}

TEST_CASE("a write keeps what is this rank's, piece by piece", "[weight_store]") {
  WeightStore store(at::kCPU);
  const int slab = store.add({"slab", 10, SlabTier::kHost, 0, nullptr});
  store.put(slab, 3, at::full({4}, 7, at::kByte));
  store.put(slab, 8, at::full({5}, 9, at::kByte));  // beyond the end: dropped
  CHECK(at::equal(store.kept(slab).narrow(0, 0, 10), at::tensor({0, 0, 0, 7, 7, 7, 7, 0, 9, 9}, at::kByte)));
  CHECK(store.owns(slab, {9, 1}));
  CHECK(!store.owns(slab, {10, 5}));
  CHECK(WeightStore::shard_bytes(1000, 1) == 1000);
  CHECK(WeightStore::shard_bytes(1025, 4) == 512);
  CHECK(WeightStore::shard_bytes(1024, 4) == 256);
}

TEST_CASE("host memory is zeros, as long as asked, and goes with its last reference", "[weight_store]") {
  for (const int64_t size : {0, 1, 5000000}) {
    at::Tensor bytes = host_bytes(size, /*pin=*/false);
    CHECK(bytes.numel() == size);
    CHECK(bytes.count_nonzero().item<int64_t>() == 0);
    at::Tensor view = bytes.narrow(0, 0, size);
    bytes = at::Tensor();
    view.fill_(1);
    CHECK(view.sum().item<int64_t>() == size);
  }
}

TEST_CASE("slabs that train are fetched anew in each round, once written, and none for the next", "[weight_store]") {
  WeightStore store(at::kCPU);
  std::vector<int> slabs, fetched;
  for (int s = 0; s < 4; ++s) {
    SlabSpec spec{"slab", 100, SlabTier::kHost, 2};
    spec.trains = true;
    spec.before_fetch = [&fetched, s] { fetched.push_back(s); };
    slabs.push_back(store.add(spec));
  }
  const std::vector<int> uses = {0, 1, 2, 3, 3, 2, 1, 0};
  for (int round = 1; round <= 3; ++round) {
    fetched.clear();
    for (const int slab : slabs) {
      store.kept(slab).fill_(10 * round + slab);
      store.rewritten(slab, {});
    }
    store.schedule(uses);
    CHECK(fetched == std::vector<int>{0, 1});
    for (const int slab : uses) {
      CHECK((store.use(slab) == 10 * round + slab).all().item<bool>());
      store.release(slab);
    }
    // The two at the turn are not fetched again; behind the last use nothing is.
    CHECK(fetched == std::vector<int>{0, 1, 2, 3, 1, 0});
  }
  CHECK(store.traffic().copied == 3 * 6 * 100);
  CHECK(contains(message_of<InternalError>([&] { store.use(0); }), "nothing is scheduled"));
  CHECK(contains(message_of<InternalError>([&] { store.add({"frozen", 1, SlabTier::kHost, 2}); }),
                 "in a lane of others"));
}
