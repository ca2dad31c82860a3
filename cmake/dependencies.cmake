# What the build stands on. LibTorch comes from CMAKE_PREFIX_PATH when given, otherwise from the torch wheel in .venv;
# nvcc from CUDACXX, the wheels in .venv (scripts/setup puts them there where they are needed) or the machine's toolkit.
# Gives the targets moetune_torch and moetune_nccl.

# ccache also serves precompiled headers when told which of their checks to relax.
find_program(CCACHE ccache)
if(CCACHE)
  set(ccache_command ${CMAKE_COMMAND} -E env
    CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${ccache_command})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${ccache_command})
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
endif()

# --- Python, and the folders of the wheels it has --------------------------------------------------------------------
if(EXISTS ${CMAKE_SOURCE_DIR}/.venv/bin/python)
  set(MOETUNE_PYTHON ${CMAKE_SOURCE_DIR}/.venv/bin/python CACHE FILEPATH "The Python that has tokenizers, and for tests transformers and PEFT")
else()
  find_program(MOETUNE_PYTHON python3 REQUIRED)
endif()
# Sets OUT to the folder of a Python package, or to nothing. Looks without importing: torch takes seconds.
function(wheel_folder package out)
  execute_process(
    COMMAND ${MOETUNE_PYTHON} -c "import importlib.util as u; print(list(u.find_spec('${package}').submodule_search_locations)[0])"
    OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    set(folder "")
  endif()
  set(${out} "${folder}" PARENT_SCOPE)
endfunction()
wheel_folder(torch torch_wheel)
wheel_folder(nvidia.nccl nccl_wheel)
wheel_folder(nvidia.cu13 cuda_wheel)

# --- CUDA ------------------------------------------------------------------------------------------------------------
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  if(EXISTS "${cuda_wheel}/bin/nvcc")
    set(CMAKE_CUDA_COMPILER ${cuda_wheel}/bin/nvcc CACHE FILEPATH "nvcc")
  else()
    find_program(CMAKE_CUDA_COMPILER nvcc HINTS /usr/local/cuda/bin)
  endif()
endif()
if("${CMAKE_CUDA_COMPILER}" STREQUAL "${cuda_wheel}/bin/nvcc")
  set(CUDAToolkit_ROOT ${cuda_wheel})
  set(CUDA_TOOLKIT_ROOT_DIR ${cuda_wheel} CACHE PATH "The toolkit, for torch's own search")
endif()
include(cmake/cuda_archs.cmake)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
if(CMAKE_VERSION VERSION_LESS 3.26)
  set(CMAKE_CUDA_STANDARD 17)  # older CMake knows no C++20 flag for nvcc 13
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

# --- LibTorch --------------------------------------------------------------------------------------------------------
# The wheel is the last place looked in, so it goes behind the environment's prefixes, which CMake would put last.
if(DEFINED ENV{CMAKE_PREFIX_PATH})
  file(TO_CMAKE_PATH "$ENV{CMAKE_PREFIX_PATH}" given_prefixes)
  list(APPEND CMAKE_PREFIX_PATH ${given_prefixes})
endif()
if(torch_wheel)
  list(APPEND CMAKE_PREFIX_PATH ${torch_wheel})
endif()
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
# torch's wheels export parts of a std::filesystem of their own, and its remove_all() crashes: the real one must come first. By path and
# through the linker, since a g++ without a shared libstdc++ beside it would take the archive, and that only after torch.
foreach(name libstdc++.so libstdc++.so.6)
  execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=${name} OUTPUT_VARIABLE libstdcxx OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(IS_ABSOLUTE "${libstdcxx}")
    break()
  endif()
endforeach()
if(NOT IS_ABSOLUTE "${libstdcxx}")
  unset(libstdcxx)
  find_library(libstdcxx NAMES libstdc++.so.6 REQUIRED)
endif()
target_link_options(moetune_torch INTERFACE "LINKER:--push-state,--no-as-needed,${libstdcxx},--pop-state")

# --- NCCL: the wheel that torch itself loads, otherwise the machine's -------------------------------------------------
find_path(NCCL_INCLUDE nccl.h HINTS "${nccl_wheel}/include" ${CUDAToolkit_INCLUDE_DIRS} REQUIRED)
find_library(NCCL_LIBRARY NAMES libnccl.so.2 nccl HINTS "${nccl_wheel}/lib" ${CUDAToolkit_LIBRARY_DIR} REQUIRED)
add_library(moetune_nccl INTERFACE)
target_include_directories(moetune_nccl SYSTEM INTERFACE ${NCCL_INCLUDE})
target_link_libraries(moetune_nccl INTERFACE ${NCCL_LIBRARY} CUDA::cudart)

# --- the rest, from the system's packages ----------------------------------------------------------------------------
find_package(MPI REQUIRED COMPONENTS CXX)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(yaml-cpp REQUIRED)
find_package(CLI11 REQUIRED)
find_package(Threads REQUIRED)
