// Every collective against closed forms of small integers, which all dtypes here represent exactly. The same cases run
// over MPI on CPUs and over NCCL on GPUs.
#include "parallel/comm/communicator.h"

#include "parallel/base/error.h"
#include "parallel/comm/mpi_communicator.h"
#include "tests/support/catch.h"
#include "tests/support/dist.h"

using namespace moetune;

namespace {

std::unique_ptr<Communicator> make_world() { return test_launch().make_group(0, test_launch().rank(), "test world"); }

const std::vector<at::ScalarType> kMovable = {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf,
                                              at::kInt,    at::kLong,  at::kByte};

/// Cases about MPI itself have nothing to say over NCCL, or in a process that mpirun did not start.
bool over_mpi() { return test_launch().device().is_cpu() && test_launch().world_size() > 1; }

/// Rows from rank `from` to rank `to`: uneven; rank 1 sends nothing, rank 0 gets nothing but its own.
int64_t rows_between(int from, int to) { return from == 1 || (to == 0 && from != 0) ? 0 : from + 2 * to + 1; }

/// Every element of the i-th row that `from` sends `to`; below 128, so that 8 bits and bf16 hold it.
double row_value(int from, int to, int64_t i) { return static_cast<double>((from * 37 + to * 11 + i * 3) % 128); }

struct Rows {
  std::vector<int64_t> counts;
  std::vector<double> values;
};

Rows rows_sent_by(int from, int size, int64_t width) {
  Rows rows;
  for (int to = 0; to < size; ++to) {
    rows.counts.push_back(rows_between(from, to));
    for (int64_t i = 0; i < rows.counts.back(); ++i) {
      rows.values.insert(rows.values.end(), width, row_value(from, to, i));
    }
  }
  return rows;
}

Rows rows_received_by(int to, int size, int64_t width) {
  Rows rows;
  for (int from = 0; from < size; ++from) {
    rows.counts.push_back(rows_between(from, to));
    for (int64_t i = 0; i < rows.counts.back(); ++i) {
      rows.values.insert(rows.values.end(), width, row_value(from, to, i));
    }
  }
  return rows;
}

int64_t total(const std::vector<int64_t>& counts) {
  int64_t sum = 0;
  for (const int64_t count : counts) sum += count;
  return sum;
}

void check_all_to_all(Communicator& group, at::ScalarType type, int64_t width) {
  const Rows sent = rows_sent_by(group.rank(), group.size(), width);
  const Rows received = rows_received_by(group.rank(), group.size(), width);
  const at::Tensor in = test_tensor(sent.values, type).view({total(sent.counts), width});
  const at::Tensor out = at::full({total(received.counts), width}, 99, test_options(type));
  group.all_to_all_v(out, in, received.counts, sent.counts);
  CHECK(to_vector<double>(out) == received.values);
}

template <typename Function>
std::string defect_of(const Function& function) {
  try {
    function();
  } catch (const InternalError& error) {
    return error.what();
  }
  return "no defect";
}

}  // namespace

TEST_CASE("all_reduce sums and takes the maximum in every dtype", "[communicator]") {
  const auto world = make_world();
  const int P = world->size();
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf, at::kInt, at::kLong}) {
    INFO(at::toString(type));
    // Rank r holds r + 1 and -2 r and 3: P (P + 1) / 2, -P (P - 1), 3 P; maxima P, 0, 3.
    const std::vector<double> mine = {world->rank() + 1.0, -2.0 * world->rank(), 3.0};
    const at::Tensor sum = test_tensor(mine, type);
    world->all_reduce_sum(sum);
    CHECK(to_vector<double>(sum) == std::vector<double>{P * (P + 1) / 2.0, -1.0 * P * (P - 1), 3.0 * P});
    const at::Tensor largest = test_tensor(mine, type);
    world->all_reduce_max(largest);
    CHECK(to_vector<double>(largest) == std::vector<double>{1.0 * P, 0.0, 3.0});
  }
}

TEST_CASE("all_reduce_max works on bytes, and on bool as any", "[communicator]") {
  const auto world = make_world();
  const bool last = world->rank() == world->size() - 1;
  const at::Tensor flags = test_tensor(std::vector<double>{last ? 1.0 : 0.0, 0.0}, at::kBool);
  world->all_reduce_max(flags);
  CHECK(to_vector<double>(flags) == std::vector<double>{1.0, 0.0});
  // Above 127: a signed maximum would give another answer.
  const at::Tensor bytes = test_tensor(std::vector<double>{last ? 200.0 : 5.0}, at::kByte);
  world->all_reduce_max(bytes);
  CHECK(to_vector<double>(bytes) == std::vector<double>{200.0});
}

TEST_CASE("16-bit sums round once on MPI", "[communicator]") {
  // Over P = 4 ranks of 1/512 each beside a 1: in bf16, whose spacing above 1 is 1/128, every single addition would
  // round back to 1; the sum 1 + 3/512 is nearer to 1 + 1/128.
  if (!over_mpi() || test_launch().world_size() != 4) return;
  const auto world = make_world();
  const at::Tensor value = test_tensor(std::vector<double>{world->rank() == 0 ? 1.0 : 1.0 / 512}, at::kBFloat16);
  world->all_reduce_sum(value);
  CHECK(to_vector<double>(value) == std::vector<double>{1.0 + 1.0 / 128});
}

TEST_CASE("all ranks get bitwise the same sum", "[communicator]") {
  const auto world = make_world();
  // Values whose sum depends on the order of the additions.
  const at::Tensor sum = (at::arange(10007, test_options(at::kFloat)) * 0.1 + world->rank() * 0.7).sin();
  world->all_reduce_sum(sum);
  const at::Tensor bits = sum.view(at::kInt);
  const at::Tensor all_bits = at::empty({world->size(), bits.numel()}, test_options(at::kInt));
  world->all_gather(all_bits, bits);
  CHECK(at::equal(all_bits, bits.expand_as(all_bits)));
}

TEST_CASE("broadcast copies from any root, in any dtype", "[communicator]") {
  const auto world = make_world();
  for (const at::ScalarType type : kMovable) {
    INFO(at::toString(type));
    for (int root = 0; root < world->size(); ++root) {
      const at::Tensor value = test_tensor(std::vector<double>{10.0 * world->rank(), world->rank() + 1.0}, type);
      world->broadcast(value, root);
      CHECK(to_vector<double>(value) == std::vector<double>{10.0 * root, root + 1.0});
    }
  }
  const at::Tensor flags = test_tensor(std::vector<double>{world->rank() == 0 ? 1.0 : 0.0}, at::kBool);
  world->broadcast(flags, 0);
  CHECK(to_vector<double>(flags) == std::vector<double>{1.0});
}

TEST_CASE("all_gather orders by rank, also in place", "[communicator]") {
  const auto world = make_world();
  for (const at::ScalarType type : kMovable) {
    INFO(at::toString(type));
    std::vector<double> expected;
    for (int r = 0; r < world->size(); ++r) expected.insert(expected.end(), {r + 1.0, 20.0 + r, 7.0});
    const at::Tensor in = test_tensor(std::vector<double>{world->rank() + 1.0, 20.0 + world->rank(), 7.0}, type);
    const at::Tensor out = at::zeros({world->size() * 3}, test_options(type));
    world->all_gather(out, in);
    CHECK(to_vector<double>(out) == expected);

    const at::Tensor shared = at::zeros({world->size(), 3}, test_options(type));
    shared[world->rank()].copy_(in);
    world->all_gather(shared, shared[world->rank()]);
    CHECK(to_vector<double>(shared) == expected);
  }
}

TEST_CASE("reduce_scatter_sum gives each rank its part of the sum", "[communicator]") {
  const auto world = make_world();
  const int P = world->size(), me = world->rank();
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf, at::kInt, at::kLong}) {
    INFO(at::toString(type));
    // Rank r holds r + 10 q and -q at the part of rank q: P (P - 1) / 2 + 10 q P, and -q P.
    std::vector<double> mine;
    for (int q = 0; q < P; ++q) mine.insert(mine.end(), {me + 10.0 * q, -1.0 * q});
    const at::Tensor in = test_tensor(mine, type).view({P, 2}), out = at::zeros({2}, test_options(type));
    world->reduce_scatter_sum(out, in);
    CHECK(to_vector<double>(out) == std::vector<double>{P * (P - 1) / 2.0 + 10.0 * me * P, -1.0 * me * P});
    CHECK(to_vector<double>(in) == mine);
  }
  if (!over_mpi() || P != 4) return;
  // As all_reduce, in fp32 and rounded once: 1 + 3/512 is nearer to 1 + 1/128 than to 1.
  const at::Tensor out = at::zeros({1}, test_options(at::kBFloat16));
  world->reduce_scatter_sum(out, at::full({P}, me == 0 ? 1.0 : 1.0 / 512, test_options(at::kBFloat16)));
  CHECK(to_vector<double>(out) == std::vector<double>{1.0 + 1.0 / 128});
}

TEST_CASE("all_to_all_v moves uneven and empty loads in every dtype and width", "[communicator]") {
  const auto world = make_world();
  for (const at::ScalarType type : kMovable) {
    INFO(at::toString(type));
    for (const int64_t width : {1, 3, 64}) check_all_to_all(*world, type, width);
  }
}

TEST_CASE("all_to_all_v with nothing to move", "[communicator]") {
  const auto world = make_world();
  const std::vector<int64_t> none(world->size(), 0);
  const at::Tensor in = at::empty({0, 5}, test_options(at::kFloat));
  const at::Tensor out = at::empty({0, 5}, test_options(at::kFloat));
  world->all_to_all_v(out, in, none, none);
  // Rows without width.
  const std::vector<int64_t> two(world->size(), 2);
  const at::Tensor thin = at::empty({2 * world->size(), 0}, test_options(at::kFloat));
  world->all_to_all_v(at::empty_like(thin), thin, two, two);
  CHECK(world->bytes_sent() == 0);
}

TEST_CASE("all_to_all_v where one rank gets everything", "[communicator]") {
  const auto world = make_world();
  const int P = world->size();
  std::vector<int64_t> send(P, 0);
  send[P - 1] = 2;
  const bool last = world->rank() == P - 1;
  const std::vector<int64_t> receive(P, last ? 2 : 0);
  const at::Tensor in = at::full({2, 2}, world->rank(), test_options(at::kBFloat16));
  const at::Tensor out = at::empty({last ? 2 * P : 0, 2}, test_options(at::kBFloat16));
  world->all_to_all_v(out, in, receive, send);
  std::vector<double> expected;
  for (int r = 0; last && r < P; ++r) expected.insert(expected.end(), 4, r);
  CHECK(to_vector<double>(out) == expected);
}

TEST_CASE("collectives of zero elements return", "[communicator]") {
  const auto world = make_world();
  const at::Tensor nothing = at::empty({0, 4}, test_options(at::kBFloat16));
  world->all_reduce_sum(nothing);
  world->all_reduce_max(nothing);
  world->broadcast(nothing, world->size() - 1);
  world->all_gather(at::empty({0}, test_options(at::kBFloat16)), nothing);
  world->reduce_scatter_sum(at::empty({0}, test_options(at::kBFloat16)), nothing);
  world->barrier();
  CHECK(world->bytes_sent() == 0);
}

TEST_CASE("bytes sent are the payload to other ranks", "[communicator]") {
  const auto world = make_world();
  const int P = world->size();
  int64_t before = 0;
  const auto sent_since = [&] {
    const int64_t bytes = world->bytes_sent() - before;
    before = world->bytes_sent();
    return bytes;
  };
  const at::Tensor value = at::zeros({4 * P}, test_options(at::kFloat));  // 16 P bytes
  world->all_reduce_sum(value);
  CHECK(sent_since() == 2 * (P - 1) * 16);
  world->broadcast(value, 0);
  CHECK(sent_since() == (world->rank() == 0 ? (P - 1) * 16 * P : 0));
  world->all_gather(at::zeros({P, 4 * P}, test_options(at::kFloat)), value);
  CHECK(sent_since() == (P - 1) * 16 * P);
  world->reduce_scatter_sum(at::zeros({4}, test_options(at::kFloat)), value);
  CHECK(sent_since() == (P - 1) * 16);
  check_all_to_all(*world, at::kBFloat16, 3);
  const int64_t others = total(rows_sent_by(world->rank(), P, 1).counts) - rows_between(world->rank(), world->rank());
  CHECK(sent_since() == others * 3 * 2);
}

TEST_CASE("groups are the ranks of one color, ordered by key", "[communicator]") {
  Launch& launch = test_launch();
  const int P = launch.world_size();
  // Odd and even ranks, in reverse order of the world; then every rank alone.
  const auto half = launch.make_group(launch.rank() % 2, P - launch.rank(), "half");
  std::vector<double> members;
  for (int r = P - 1; r >= 0; --r) {
    if (r % 2 == launch.rank() % 2) members.push_back(r);
  }
  REQUIRE(half->size() == static_cast<int>(members.size()));
  CHECK(members[half->rank()] == launch.rank());
  CHECK(half->name() == "half");
  const at::Tensor world_ranks = at::empty({half->size()}, test_options(at::kInt));
  half->all_gather(world_ranks, at::full({1}, launch.rank(), test_options(at::kInt)));
  CHECK(to_vector<double>(world_ranks) == members);
  check_all_to_all(*half, at::kFloat, 2);

  const auto alone = launch.make_group(launch.rank(), 0, "alone");
  REQUIRE(alone->size() == 1);
  const at::Tensor value = at::full({2}, launch.rank(), test_options(at::kFloat));
  alone->all_reduce_sum(value);
  const at::Tensor out = at::empty({2}, test_options(at::kFloat));
  alone->all_gather(out, value);
  CHECK(to_vector<double>(out) == std::vector<double>(2, launch.rank()));
  alone->reduce_scatter_sum(out, value + 1);
  CHECK(to_vector<double>(out) == std::vector<double>(2, launch.rank() + 1));
  alone->all_to_all_v(out, value, {2}, {2});
  alone->barrier();
  CHECK(alone->bytes_sent() == 0);
}

TEST_CASE("mistakes in arguments are found before anything is sent", "[communicator]") {
  const auto world = make_world();
  const int P = world->size();
  const at::Tensor in = at::zeros({P, 2}, test_options(at::kFloat));
  const std::vector<int64_t> ones(P, 1);
  const std::vector<int64_t> twos(P, 2);
  const auto defect = [&](const auto& function, const std::string& part) {
    INFO(part);
    CHECK(defect_of(function).find(part) != std::string::npos);
  };
  defect([&] { world->all_reduce_sum(at::zeros({3, 2}, in.options()).t()); }, "is not contiguous");
  defect([&] { world->all_reduce_sum(at::zeros({2}, test_options(at::kBool))); }, "no such reduction");
  defect([&] { world->all_gather(at::zeros({P, 5}, in.options()), in); }, "all_gather on group test world");
  defect([&] { world->reduce_scatter_sum(at::zeros({P, 2}, in.options()), at::zeros({P, P, 3}, in.options())); },
         "reduce_scatter_sum on group");
  defect(
      [&] {
        world->reduce_scatter_sum(at::zeros({2}, test_options(at::kByte)), at::zeros({P, 2}, test_options(at::kByte)));
      },
      "reduce_scatter_sum on group");
  defect([&] { world->broadcast(in, P); }, "root");
  defect([&] { world->all_to_all_v(at::empty_like(in), in, ones, twos); }, "counts say");
  defect([&] { world->all_to_all_v(at::empty({P, 3}, in.options()), in, ones, ones); }, "all_to_all_v on group");
  defect([&] { world->all_to_all_v(at::empty_like(in), in, ones, std::vector<int64_t>(P - 1, 1)); }, "send counts");
  defect([&] { world->all_reduce_sum(at::zeros({2}, at::kMeta)); }, "the tensor is on meta");
  CHECK(world->bytes_sent() == 0);
}

TEST_CASE("MPI moves in pieces what its counts cannot hold", "[communicator]") {
  if (!over_mpi()) return;
  // 7 bytes or elements a piece: pieces end inside elements and inside rows.
  const auto world = MpiCommunicator::split_world(0, test_launch().rank(), "pieces", 7);
  const int P = world->size();
  const at::Tensor sum = at::arange(100, test_options(at::kDouble)) + world->rank();
  world->all_reduce_sum(sum);
  CHECK(at::equal(sum, at::arange(100, test_options(at::kDouble)) * P + P * (P - 1) / 2));

  const at::Tensor copy = at::arange(33, test_options(at::kFloat)) * (world->rank() + 1);
  world->broadcast(copy, P - 1);
  CHECK(at::equal(copy, at::arange(33, test_options(at::kFloat)) * P));

  const at::Tensor all = at::empty({P, 33}, test_options(at::kLong));
  world->all_gather(all, at::arange(33, test_options(at::kLong)) + 1000 * world->rank());
  const at::Tensor thousands = 1000 * at::arange(P, test_options(at::kLong)).unsqueeze(1);
  CHECK(at::equal(all, at::arange(33, test_options(at::kLong)) + thousands));

  const at::Tensor part = at::empty({33}, test_options(at::kDouble));
  world->reduce_scatter_sum(part, at::arange(33 * P, test_options(at::kDouble)) + world->rank());
  CHECK(at::equal(part, (at::arange(33, test_options(at::kDouble)) + 33 * world->rank()) * P + P * (P - 1) / 2));

  for (const int64_t width : {1, 3, 64}) check_all_to_all(*world, at::kBFloat16, width);
}

TEST_CASE("MPI names the peer whose rows differ from the announced ones", "[communicator]") {
  if (!over_mpi()) return;
  const auto world = make_world();
  const int P = world->size();
  // Rank 0 expects 3 rows from rank 1, which sends 2.
  std::vector<int64_t> receive(P, 1);
  std::vector<int64_t> send(P, 1);
  if (world->rank() == 0) receive[1] = 3;
  if (world->rank() == 1) send[0] = 2;
  const at::Tensor in = at::zeros({total(send), 2}, test_options(at::kFloat));
  const at::Tensor out = at::zeros({total(receive), 2}, test_options(at::kFloat));
  const std::string defect = defect_of([&] { world->all_to_all_v(out, in, receive, send); });
  if (world->rank() == 0) {
    CHECK(defect.find("rank 1 sent rank 0 16 bytes where it expected 24") != std::string::npos);
  } else {
    CHECK(defect == "no defect");
  }
}
