// A file as the safetensors library 0.8.0 for Python wrote it:
//
//   import torch
//   from safetensors.torch import save
//   print(save({"scale": torch.tensor(1.5),
//               "w": torch.tensor([[1., -2., 0.5], [4., 0.25, -8.]], dtype=torch.bfloat16),
//               "f8": torch.tensor([1., -2., 448., 0.5]).to(torch.float8_e4m3fn),
//               "e8": torch.tensor([1., 2., 0.25]).to(torch.float8_e8m0fnu),
//               "none": torch.zeros(0, 4), "ids": torch.tensor([7, -1]), "on": torch.tensor([True, False])},
//              {"format": "pt", "note": "a"}).hex())
#pragma once

#include <string>
#include <string_view>

namespace moetune {

/// 8 bytes of length, 456 of header, 41 of tensors.
inline std::string reference_safetensors() {
  constexpr std::string_view kHex =
      "c8010000000000007b225f5f6d657461646174615f5f223a7b226e6f7465223a2261222c22666f726d6174223a227074227d2c22696473"
      "223a7b226474797065223a22493634222c227368617065223a5b325d2c22646174615f6f666673657473223a5b302c31365d7d2c226e6f"
      "6e65223a7b226474797065223a22463332222c227368617065223a5b302c345d2c22646174615f6f666673657473223a5b31362c31365d"
      "7d2c227363616c65223a7b226474797065223a22463332222c227368617065223a5b5d2c22646174615f6f666673657473223a5b31362c"
      "32305d7d2c2277223a7b226474797065223a2242463136222c227368617065223a5b322c335d2c22646174615f6f666673657473223a5b"
      "32302c33325d7d2c226538223a7b226474797065223a2246385f45384d30222c227368617065223a5b335d2c22646174615f6f66667365"
      "7473223a5b33322c33355d7d2c226638223a7b226474797065223a2246385f45344d33222c227368617065223a5b345d2c22646174615f"
      "6f666673657473223a5b33352c33395d7d2c226f6e223a7b226474797065223a22424f4f4c222c227368617065223a5b325d2c22646174"
      "615f6f666673657473223a5b33392c34315d7d7d202020200700000000000000ffffffffffffffff0000c03f803f00c0003f8040803e00"
      "c17f807d38c07e300100";
  std::string bytes;
  for (std::size_t i = 0; i < kHex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(std::string(kHex.substr(i, 2)), nullptr, 16));
  }
  return bytes;
}

}  // namespace moetune
