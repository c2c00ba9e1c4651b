# SPDX-License-Identifier: Apache-2.0
# find_package(noisefuse) where noisefuse_DIR is what noisefuse.get_include() returns: the target noisefuse::headers.
if(NOT TARGET noisefuse::headers)
  add_library(noisefuse::headers INTERFACE IMPORTED)
  target_include_directories(noisefuse::headers INTERFACE ${CMAKE_CURRENT_LIST_DIR})
  target_compile_features(noisefuse::headers INTERFACE cxx_std_20)
  # Bits are part of the contract: a product and a sum are fused where the text says fma, and nowhere else.
  if(MSVC)
    target_compile_options(noisefuse::headers INTERFACE "/clang:-ffp-contract=off")
  else()
    target_compile_options(noisefuse::headers INTERFACE -ffp-contract=off)
  endif()
endif()
