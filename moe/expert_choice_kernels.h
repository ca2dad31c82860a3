// The CUDA kernel of a router's choice (Router::choose, moe/router.h) on raw device pointers and a stream: the same
// experts in the same order, ties to the lower number.
//
//   if (takes_choice(experts, groups)) choose_experts_cuda(arguments, stream);
//   // then check cudaGetLastError(): the function only launches
//
// A warp a token, in place of a sort of all experts and a dozen passes over [T, E].
#pragma once

#include <cstdint>

typedef struct CUstream_st* cudaStream_t;

namespace moetune {

/// c = score + correction;  of `groups` equal runs of experts the top_groups with the greatest max c, or sum of their
/// two best c, are open;  expert = the top_k of c among the open.
struct ExpertChoiceArguments {
  const float* score = nullptr;       ///< [tokens, experts]
  const float* correction = nullptr;  ///< [experts]; null: 0
  int64_t tokens = 0;
  int experts = 0, top_k = 0;
  int groups = 1, top_groups = 1;  ///< one group: all are open
  bool by_best_two = false;
  int64_t* expert = nullptr;  ///< [tokens, top_k]
};

/// Whether there is a kernel for so many.
inline bool takes_choice(int64_t experts, int64_t groups) { return experts <= 1024 && groups <= 32; }

void choose_experts_cuda(const ExpertChoiceArguments& arguments, cudaStream_t stream);

}  // namespace moetune
