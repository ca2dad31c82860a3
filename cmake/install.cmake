# `cmake --install build --prefix DIR`: a tree that runs from anywhere, found by parallel/base/program_files.h.
#
#   bin/moetune   share/moetune/{recipes, scripts/prepare, scripts/draw, python}   share/doc/moetune
#
# LibTorch, CUDA and NCCL (5 GB) are not copied: the program finds them where they lay when it was built (its rpath), and Python where
# MOETUNE_PYTHON was, whose path the file `python` holds. On a cluster both belong on the shared file system.
include(GNUInstallDirs)
get_filename_component(nccl_folder ${NCCL_LIBRARY} DIRECTORY)
# By name: of the libraries that it links with, CMake leaves out those in the checkout, where .venv lies.
set_target_properties(moetune PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON
  INSTALL_RPATH "${TORCH_INSTALL_PREFIX}/lib;${nccl_folder};${CUDAToolkit_LIBRARY_DIR}")
install(TARGETS moetune RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY recipes DESTINATION ${CMAKE_INSTALL_DATADIR}/moetune
  FILES_MATCHING PATTERN "*.yaml" PATTERN "*.json")
install(DIRECTORY scripts/prepare DESTINATION ${CMAKE_INSTALL_DATADIR}/moetune/scripts FILES_MATCHING PATTERN "*.py")
install(DIRECTORY scripts/draw DESTINATION ${CMAKE_INSTALL_DATADIR}/moetune/scripts FILES_MATCHING REGEX "\\.(py|css|js)$")
install(FILES scripts/requirements.txt DESTINATION ${CMAKE_INSTALL_DATADIR}/moetune/scripts)
install(FILES README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs/ DESTINATION ${CMAKE_INSTALL_DOCDIR}/docs FILES_MATCHING PATTERN "*.md" PATTERN "*.svg")
file(WRITE ${CMAKE_BINARY_DIR}/python "${MOETUNE_PYTHON}\n")
install(FILES ${CMAKE_BINARY_DIR}/python DESTINATION ${CMAKE_INSTALL_DATADIR}/moetune)
