// What a rank gets of its host, and what collectives take beside their bytes, by hand.
#include "trainer/plan/kernel_rates.h"

#include "parallel/base/error.h"
#include "parallel/base/files.h"
#include "tests/support/catch.h"
#include "tests/support/temporary_folder.h"

using namespace moetune;

namespace {

constexpr double kMicro = 1e-6;

/// AdamW at 3e9 numbers a second and copies at 5e10 bytes, of `at_once` ranks of a host, whose share of its memory is
/// 7.2e10 bytes a second: 36 of them a number are 2e9.
MachineProfile machine_of(int64_t at_once) {
  MachineProfile machine;
  machine.name = "by hand";
  machine.measured = true;
  machine.host_memory_bytes_per_s = 7.2e10;
  const auto put = [&](const std::string& name, double rate) {
    machine.figures[name] = {rate, rate / 2, rate * 2, "test", at_once};
  };
  put("optimizer.adamw", 3e9);
  put("copy_to_device", 5e10);
  put("copy_from_device", 4e10);
  put("all_gather", 1e11);
  put("device_copy", 1e12);
  put("small_blocks", 100);
  return machine;
}

KernelRates rates_of(const MachineProfile& machine, const MeshShape& mesh, Outlook outlook = Outlook::kExpected) {
  static const NetworkProfile network{"net", 1e11 / 0.86, "test", 3 * kMicro, 15 * kMicro};  // 1e11 of it are reached
  return KernelRates(machine, network, mesh, outlook);
}
MeshShape replicas(int64_t ranks) { return {.pp = 1, .dp = ranks, .ep = 1, .tp = 1}; }

bool near(double value, double expected) { return std::abs(value - expected) <= 1e-9 * std::abs(expected); }

}  // namespace

TEST_CASE("the ranks of a host share its memory", "[kernel_rates]") {
  MachineProfile machine = machine_of(1);
  CHECK(near(rates_of(machine, replicas(1)).adamw(), 3e9));
  for (const int64_t ranks : {2, 8, 16}) {
    const KernelRates rates = rates_of(machine, replicas(ranks));
    CHECK(near(rates.adamw(), 2e9));
    CHECK(near(rates.to_device(), 5e10));  // each over a link of its own
    CHECK(near(rates.from_device(), 4e10));
  }
  // The slowest repeat, 1.5e9, is below that; both ends by 5 % more.
  CHECK(near(rates_of(machine, replicas(2), Outlook::kHigh).adamw(), 1.5e9 / 1.05));
  CHECK(near(rates_of(machine, replicas(2), Outlook::kLow).adamw(), 2e9 * 1.05));
  machine.ranks_per_host = 1;
  CHECK(near(rates_of(machine, replicas(16)).adamw(), 3e9));
  machine.ranks_per_host = 8;
  machine.host_memory_bytes_per_s = 3.6e10;
  CHECK(near(rates_of(machine, replicas(2)).adamw(), 1e9));
  CHECK(near(rates_of(machine, replicas(2)).to_device(), 3.6e10));
  machine.host_memory_bytes_per_s = 0.0;  // not known: two have what one had
  CHECK(near(rates_of(machine, replicas(2)).adamw(), 1.5e9));
  CHECK(near(rates_of(machine, replicas(2)).to_device(), 5e10));
}

TEST_CASE("fewer ranks than measured a host at once have more of it each", "[kernel_rates]") {
  const MachineProfile machine = machine_of(8);
  CHECK(near(rates_of(machine, replicas(8)).adamw(), 3e9));
  CHECK(near(rates_of(machine, replicas(2)).adamw(), 4 * 3e9));
  CHECK(near(rates_of(machine, replicas(2)).to_device(), 5e10));
  CHECK(near(rates_of(machine, replicas(2)).memory(), 1e12));  // a GPU's own
}

TEST_CASE("ranks of CPUs share all that their host computes", "[kernel_rates]") {
  MachineProfile machine = machine_of(2);
  machine.device = c10::DeviceType::CPU;
  machine.host_memory_bytes_per_s = 0.0;
  for (const auto& [ranks, share] : {std::pair<int64_t, double>{1, 2.0}, {2, 1.0}, {4, 0.5}}) {
    const KernelRates rates = rates_of(machine, replicas(ranks));
    CHECK(near(rates.adamw(), 3e9 * share));
    CHECK(near(rates.memory(), 1e12 * share));
    CHECK(near(rates.small_blocks(), 100));  // one thread each
  }
}

// Two H200s of a host updated 1.98 G numbers at 0.7 of the rate that one has alone (docs/planner.md): an eighth of the
// host's 614.4 GB/s, 36 bytes a number.
TEST_CASE("two H200s of a host update as fast as an eighth of its memory lets each", "[kernel_rates]") {
  const MachineProfile h200 = shipped_machine("h200");
  const double alone = rates_of(h200, replicas(1)).adamw(), beside = rates_of(h200, replicas(2)).adamw();
  CHECK(near(beside, 614.4e9 / 8 / 36));
  CHECK(std::abs(beside / alone - 0.7) < 0.01);
}

// A ring of 16 ranks, 8 a host, has 14 hops within a host and one between: with flags 6 + 14 x 0.5 + 3 us and half of
// the rate, in pieces 8 + 14 x 4 + 15 us and all of it. Half of what goes to 15 others stays within 7 of 15.
TEST_CASE("a collective takes its start and its hops beside its bytes", "[kernel_rates]") {
  MachineProfile machine = machine_of(1);
  machine.latency = {{6 * kMicro, 0.5 * kMicro}, {8 * kMicro, 4 * kMicro}};
  const KernelRates rates = rates_of(machine, replicas(16));
  const RankAxis& axis = rates.data_axis();
  REQUIRE(axis.ranks == 16);
  REQUIRE(axis.on_host == 8);
  const auto on_links = [](double bytes) { return 8.0 / 15.0 * bytes / 1e11; };
  CHECK(near(rates.seconds_to_send(1e6, axis), 16 * kMicro + 2 * on_links(1e6)));
  CHECK(near(rates.seconds_to_send(1e9, axis), 79 * kMicro + on_links(1e9)));
  CHECK(near(rates.seconds_to_send(1e9, axis, 3), 3 * 79 * kMicro + on_links(1e9)));
  CHECK(near(rates_of(machine, replicas(16), Outlook::kHigh).seconds_to_send(1e-9, axis), 1.05 * 16 * kMicro));
  CHECK(rates.seconds_to_send(0.0, axis) == 0.0);
  CHECK(rates.seconds_to_send(1e9, {1, 1}) == 0.0);
  // Rows go to all others at once: a hop within the host and one between.
  const KernelRates experts = rates_of(machine, {.pp = 1, .dp = 1, .ep = 16, .tp = 1});
  CHECK(near(experts.seconds_to_exchange(1e9), 27 * kMicro + on_links(1e9)));
  CHECK(near(experts.seconds_to_exchange(1e4, 2), 2 * 9.5 * kMicro + 2 * on_links(1e4)));
}

TEST_CASE("a machine's file says what its collectives take, or its kind does", "[kernel_rates]") {
  const TemporaryFolder folder;
  const auto read = [&](const std::string& more) {
    write_text_atomically(folder / "machine.json",
                          str("{\"format\": \"moetune-machine-1\", \"ranks\": 4, \"ranks_per_host\": 4, \"device\": "
                              "{\"kind\": \"cuda\", \"name\": \"NVIDIA H200\", \"memory_bytes\": 1}, \"figures\": "
                              "{\"optimizer.adamw\": {\"value\": 5e9}",
                              more, "}}"));
    return measured_machine(folder / "machine.json");
  };
  const MachineProfile h200 = shipped_machine("h200"), old = read("");  // as older versions wrote it
  CHECK(old.figure("optimizer.adamw").at_once == 4);
  CHECK(near(rates_of(old, replicas(2)).adamw(), 2 * 5e9));
  CHECK(near(old.latency.large.hop_s, h200.latency.large.hop_s));
  CHECK(near(h200.latency.large.hop_s, 3.4 * kMicro));
  // 16 us where NCCL's model of four ranks says 6.6 + 3 x 0.6 = 8.4.
  const MachineProfile slow = read(", \"all_gather.small\": {\"value\": 62500}");
  CHECK(near(slow.latency.small.start_s, 6.6 * kMicro * 16 / 8.4));
  CHECK(near(slow.latency.large.hop_s, 3.4 * kMicro * 16 / 8.4));
}
