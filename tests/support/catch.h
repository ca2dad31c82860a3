// Catch2 version 2 (Debian 12) or 3 (Ubuntu 24.04), whichever the machine has. torch's c10 defines a CHECK macro of its
// own, so torch's headers come first and Catch2's definition wins.
#pragma once

#include <torch/types.h>

#undef CHECK
#undef CHECK_FALSE
#undef FAIL
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
#endif
