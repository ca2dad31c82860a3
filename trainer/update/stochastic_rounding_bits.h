// What stochastic rounding does with one number, on the host and in kernels.
//
//   uint16_t bits_of_bf16 = rounded_by_chance(number, mixed(place ^ key));
#pragma once

#include <cstdint>
#include <cstring>

#include "parallel/base/host_device.h"

namespace moetune {

/// A bijection of 32-bit integers whose bits look independent (Wellons 2018, "lowbias32"): two products, in vectors.
MOETUNE_HOST_DEVICE inline uint32_t mixed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

/// The bits of one of the number's neighbours in bf16; `draw`: 16 random bits, the lowest.
MOETUNE_HOST_DEVICE inline uint16_t rounded_by_chance(float number, uint32_t draw) {
  uint32_t bits = 0;
  memcpy(&bits, &number, sizeof bits);
  const uint32_t finite = (bits + (draw & 0xffffu)) >> 16;
  // A NaN must not become an infinity, nor an infinity a NaN.
  const uint32_t odd = (bits >> 16) | ((bits & 0xffffu) != 0 ? 0x40u : 0u);
  return static_cast<uint16_t>((bits & 0x7f800000u) == 0x7f800000u ? odd : finite);
}

}  // namespace moetune
