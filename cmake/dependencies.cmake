# What the build stands on. LibTorch comes from CMAKE_PREFIX_PATH when given, otherwise from the torch wheel in .venv.

# ccache also serves precompiled headers when told which of their checks to relax.
find_program(CCACHE ccache)
if(CCACHE)
  set(ccache_command ${CMAKE_COMMAND} -E env
    CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${ccache_command})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${ccache_command})
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
endif()

set(venv_python ${CMAKE_SOURCE_DIR}/.venv/bin/python)
if(NOT EXISTS ${venv_python})
  find_program(venv_python_found python3 REQUIRED)
  set(venv_python ${venv_python_found})
endif()
set(MOETUNE_PYTHON ${venv_python} CACHE FILEPATH "The Python that has tokenizers, and in tests transformers and PEFT")

execute_process(COMMAND ${MOETUNE_PYTHON} -c "import torch; print(torch.utils.cmake_prefix_path)"
  OUTPUT_VARIABLE torch_prefix OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(torch_prefix)
  list(APPEND CMAKE_PREFIX_PATH ${torch_prefix})
endif()

# torch's own CMake ignores CMAKE_CUDA_ARCHITECTURES.
if(NOT DEFINED TORCH_CUDA_ARCH_LIST)
  set(TORCH_CUDA_ARCH_LIST "9.0a")
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
if(CMAKE_VERSION VERSION_LESS 3.26)
  set(CMAKE_CUDA_STANDARD 17)  # older CMake knows no C++20 flag for nvcc
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
find_package(Torch REQUIRED)
if(NOT Torch_VERSION VERSION_EQUAL 2.11.0)
  message(WARNING "moetune is tested with LibTorch 2.11.0; this is ${Torch_VERSION}")
endif()
# torch as system headers, so that its warnings stay its own
add_library(moetune_torch INTERFACE)
target_include_directories(moetune_torch SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
target_link_libraries(moetune_torch INTERFACE ${TORCH_LIBRARIES} CUDA::cudart)
string(REPLACE " " ";" torch_flags "${TORCH_CXX_FLAGS}")
# at::parallel_for is a template that runs serially in a unit compiled without OpenMP; the runtime is the one torch loads.
target_compile_options(moetune_torch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${torch_flags}> $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
target_link_options(moetune_torch INTERFACE -fopenmp)

# NCCL: the wheel that torch itself loads first, then the system's. One header search and one library search with the same hints.
execute_process(COMMAND ${MOETUNE_PYTHON} -c "import nvidia.nccl, os; print(list(nvidia.nccl.__path__)[0])"
  OUTPUT_VARIABLE nccl_wheel OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
find_path(NCCL_INCLUDE nccl.h HINTS ${nccl_wheel}/include ${CUDAToolkit_INCLUDE_DIRS} REQUIRED)
find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2 HINTS ${nccl_wheel}/lib ${CUDAToolkit_LIBRARY_DIR} REQUIRED)
add_library(moetune_nccl INTERFACE)
target_include_directories(moetune_nccl SYSTEM INTERFACE ${NCCL_INCLUDE})
target_link_libraries(moetune_nccl INTERFACE ${NCCL_LIBRARY} CUDA::cudart)

find_package(MPI REQUIRED COMPONENTS CXX)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(yaml-cpp REQUIRED)
find_package(CLI11 REQUIRED)
find_package(Threads REQUIRED)
