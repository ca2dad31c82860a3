# The GPU architectures that moetune's kernels are built for: MOETUNE_CUDA_ARCHS, a list as nvcc names them ("80;90a"), `all`, or
# `native`, those of this machine's GPUs. Sets MOETUNE_CUDA_ARCHS_BUILT, and what CMake and torch's CMake want to be told.
set(all_cuda_archs 80 86 89 90a 100 120)

execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader OUTPUT_VARIABLE native_caps RESULT_VARIABLE no_gpu
  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
set(native_cuda_archs "")
if(no_gpu EQUAL 0)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]" native_caps "${native_caps}")
  list(REMOVE_DUPLICATES native_caps)
  foreach(cap ${native_caps})
    string(REPLACE "." "" arch ${cap})
    if(arch EQUAL 90)
      set(arch 90a)
    endif()
    if(NOT cap VERSION_LESS 8.0)
      list(APPEND native_cuda_archs ${arch})
    endif()
  endforeach()
endif()

# A value of the environment (scripts/build) or the command line stays; without one a machine with GPUs builds for them.
set(MOETUNE_CUDA_ARCHS "" CACHE STRING "GPU architectures: a list such as 80;90a, all, or native (the default where there are GPUs)")
string(REGEX REPLACE "[, ]+" ";" MOETUNE_CUDA_ARCHS_BUILT "${MOETUNE_CUDA_ARCHS}")
if(MOETUNE_CUDA_ARCHS_BUILT STREQUAL "native" AND NOT native_cuda_archs)
  message(FATAL_ERROR "MOETUNE_CUDA_ARCHS=native: nvidia-smi names no GPU of compute capability 8.0 or later on this machine; "
    "give a list, such as MOETUNE_CUDA_ARCHS=90a, or all")
elseif(MOETUNE_CUDA_ARCHS_BUILT STREQUAL "native" OR (MOETUNE_CUDA_ARCHS_BUILT STREQUAL "" AND native_cuda_archs))
  set(MOETUNE_CUDA_ARCHS_BUILT ${native_cuda_archs})
elseif(MOETUNE_CUDA_ARCHS_BUILT STREQUAL "" OR MOETUNE_CUDA_ARCHS_BUILT STREQUAL "all")
  set(MOETUNE_CUDA_ARCHS_BUILT ${all_cuda_archs})
endif()
list(REMOVE_DUPLICATES MOETUNE_CUDA_ARCHS_BUILT)

# torch's own CMake ignores CMAKE_CUDA_ARCHITECTURES and wants "8.0;9.0a"; CMake itself wants one for its first trial.
set(TORCH_CUDA_ARCH_LIST "")
foreach(arch ${MOETUNE_CUDA_ARCHS_BUILT})
  if(NOT arch MATCHES "^([0-9]+)([0-9])(a?)$" OR arch LESS 80)
    message(FATAL_ERROR "MOETUNE_CUDA_ARCHS: '${arch}' is no architecture of 80 or later as nvcc names them; "
      "known to work: ${all_cuda_archs}, all, native")
  endif()
  list(APPEND TORCH_CUDA_ARCH_LIST "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}${CMAKE_MATCH_3}")
endforeach()
list(GET MOETUNE_CUDA_ARCHS_BUILT 0 CMAKE_CUDA_ARCHITECTURES)
message(STATUS "GPU architectures: ${MOETUNE_CUDA_ARCHS_BUILT}")
