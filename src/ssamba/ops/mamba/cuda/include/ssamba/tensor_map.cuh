// x
#pragma once

struct alignas(64) TensorMap { char bytes[128]; };
