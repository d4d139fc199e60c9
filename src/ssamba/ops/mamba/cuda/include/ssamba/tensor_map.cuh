// The type of a tensor map as a kernel's parameter: the driver's CUtensorMap.
#pragma once

struct alignas(64) TensorMap {
  char bytes[128];
};
