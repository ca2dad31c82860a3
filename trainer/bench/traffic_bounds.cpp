#include "trainer/bench/traffic_bounds.h"

#include "parallel/base/ceil_div.h"
#include "parallel/base/error.h"
#include "parallel/base/units.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/token_exchange.h"
#include "parallel/device/host_memory.h"

namespace moetune {
namespace {

/// Bytes that a piece of work sends to other ranks, by the group's own count.
double bytes_of(const Communicator& group, const Meter::Work& work) {
  const int64_t before = group.bytes_sent();
  work();
  return static_cast<double>(group.bytes_sent() - before);
}

}  // namespace

void measure_copies(Meter& meter) {
  const at::NoGradGuard no_grad;
  const bool gpu = meter.device().is_cuda();
  {
    const int64_t bytes = int64_t{gpu ? 1024 : 256} << 20;  // beyond any cache
    const at::Tensor from = at::randn({bytes / 4}, at::TensorOptions(at::kFloat).device(meter.device())),
                     to = at::empty_like(from);
    meter.measure({"device_copy", "B/s", 2.0 * static_cast<double>(bytes), str("2 x ", bytes_text(bytes))},
                  Meter::Where::kDevice, [&] { return to.copy_(from); });
  }
  const int64_t bytes = int64_t{256} << 20;
  const std::string shape = bytes_text(bytes);
  const at::Tensor from = host_bytes(bytes, /*pin=*/gpu).view(at::kFloat), to = host_bytes(bytes, gpu).view(at::kFloat);
  from.normal_();
  meter.measure({"host_copy", "B/s", 2.0 * static_cast<double>(bytes), "2 x " + shape}, Meter::Where::kHost,
                [&] { return to.copy_(from); });
  if (!gpu) return;
  const at::Tensor there = at::empty(from.sizes(), from.options().device(meter.device()));
  const auto amount = static_cast<double>(bytes);
  meter.measure({"copy_to_device", "B/s", amount, shape + " pinned"}, Meter::Where::kDevice,
                [&] { return there.copy_(from, /*non_blocking=*/true); });
  // The result that is looked at lies on the host, where the copy need not have come: what it came from does.
  meter.measure({"copy_from_device", "B/s", amount, shape + " pinned"}, Meter::Where::kDevice, [&] {
    to.copy_(there, /*non_blocking=*/true);
    return there;
  });
}

void measure_traffic(Meter& meter) {
  Launch& launch = meter.launch();
  if (launch.world_size() == 1) return;
  const at::NoGradGuard no_grad;
  const bool gpu = meter.device().is_cuda();
  const std::unique_ptr<Communicator> group = launch.make_group(0, launch.rank(), "bench");
  const int64_t ranks = group->size();
  const at::TensorOptions numbers = at::TensorOptions(gpu ? at::kBFloat16 : at::kFloat).device(meter.device());
  {
    const std::unique_ptr<TokenExchange> exchange = make_token_exchange(*group, /*buffer_rows=*/0);
    const int64_t T = gpu ? 4096 : 256, D = gpu ? 7168 : 1792, K = 8, E = ranks * ceil_div(256, ranks);
    const at::Tensor expert_TK =
        std::get<1>(at::rand({T, E}, at::TensorOptions(at::kFloat).device(meter.device())).topk(K));
    const std::vector<ExchangeRound> rounds = exchange->plan(expert_TK, E);
    const at::Tensor x_TD = at::randn({T, D}, numbers), sum_TD = at::zeros({T, D}, numbers);
    at::Tensor y_YD;
    const Meter::Work out = [&] { return y_YD = exchange->receive(exchange->send(rounds.front(), {x_TD})).front(); };
    // The sum starts anew: added to for long enough it would not stay finite.
    const Meter::Work back = [&] {
      sum_TD.zero_();
      exchange->back(rounds.front(), y_YD, const_cast<at::Tensor&>(sum_TD));
      return sum_TD;
    };
    const std::string shape =
        str(ranks, " ranks, T ", T, ", D ", D, ", ", K, " of ", E, " experts, ", gpu ? "bf16" : "fp32");
    meter.measure({"exchange.out", "B/s", bytes_of(*group, out), shape}, Meter::Where::kDevice, out);
    meter.measure({"exchange.back", "B/s", bytes_of(*group, back), shape}, Meter::Where::kDevice, back);
  }
  const int64_t part = (gpu ? int64_t{64} << 20 : int64_t{4} << 20) / static_cast<int64_t>(numbers.dtype().itemsize());
  const at::Tensor own = at::randn({part}, numbers), all = at::empty({ranks * part}, numbers);
  const Meter::Work gather = [&] {
    group->all_gather(all, own);
    return all;
  };
  meter.measure({"all_gather", "B/s", bytes_of(*group, gather),
                 str(ranks, " ranks, ", bytes_text(static_cast<int64_t>(own.nbytes())), " each")},
                Meter::Where::kDevice, gather);
  // So little that its time is that of any collective beside its bytes.
  const at::Tensor word = at::randn({4}, numbers), words = at::empty({ranks * 4}, numbers);
  meter.measure({"all_gather.small", "1/s", 1.0, str(ranks, " ranks, ", word.nbytes(), " B each")},
                Meter::Where::kDevice, [&] {
                  group->all_gather(words, word);
                  return words;
                });
}

}  // namespace moetune
