// Owns what is asked of the device: launches, and where memory lies. device.cu is it with CUDA;
// tests/emulation.cpp is it on the CPU, thread by thread.
#pragma once

#include <cstdint>
#include <string>

#include "concat.cuh"
#include "mask.cuh"
#include "pack.cuh"

namespace turnpack::cuda {

using Stream = void*;  // a cudaStream_t

// Every kernel there is.
#define TP_EACH_KERNEL(WITH)            \
    WITH(Gather<PackCells<int32_t>>)    \
    WITH(Gather<PackCells<int64_t>>)    \
    WITH(Gather<UnpackTokens<int32_t>>) \
    WITH(Gather<UnpackTokens<int64_t>>) \
    WITH(Gather<ConcatTokens>)          \
    WITH(MaskTiles<false>)              \
    WITH(MaskEntries)                   \
    WITH(MaskTiles<true>)

// Puts a kernel on a stream of the current device and returns at once; one of no blocks is none.
// Throws std::runtime_error that names the call.
template <class Kernel>
void launch(const char* call, const Kernel& kernel, Stream stream);

// Which device this memory is on, -1 for none.
int device_of(const void* memory);

// Makes a device the current one for as long as this lives.
class OnDevice {
  public:
    explicit OnDevice(int device);
    ~OnDevice();
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

  private:
    int before_ = 0;
};

// What is put on `stream` from now on waits for what is on `producer` now.
void wait_for(Stream stream, Stream producer);

// Why no device can be used; empty if one can.
std::string missing();

// What there is machine code for, as "sm_80 sm_90".
std::string architectures();

}  // namespace turnpack::cuda
