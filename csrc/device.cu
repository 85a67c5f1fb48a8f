// Owns device.h with CUDA: the one file that nvcc compiles. No torch headers, and nothing here
// waits for the device.

#include <cuda_runtime_api.h>

#include <limits>
#include <stdexcept>

#include "device.h"

namespace turnpack::cuda {
namespace {

template <class Kernel>
__global__ void __launch_bounds__(kThreads) run(const __grid_constant__ Kernel kernel) {
    __shared__ typename Kernel::Shared shared;
    const int64_t phases = kernel.phases();
    for (int64_t phase = 0; phase < phases; ++phase) {
        if (phase > 0) __syncthreads();
        kernel.run(phase, shared, blockIdx.x, threadIdx.x);
    }
}

// An error is taken off the runtime's record, so that nobody else finds it there.
void check(const std::string& call, cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();
    throw std::runtime_error(call + ": " + cudaGetErrorString(error));
}

// A hundred times the compute capability, rising.
constexpr int kArchitectures[] = {__CUDA_ARCH_LIST__};

// Machine code runs on devices of its major version from its minor version on, PTX, which is there
// for the last architecture, on any from that on.
bool has_code_for(int capability) {
    int newest = 0;
    for (const int architecture : kArchitectures) {
        newest = architecture;
        if (architecture / 100 == capability / 100 && architecture <= capability) return true;
    }
    return newest <= capability;
}

std::string version(int number) {
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

}  // namespace

template <class Kernel>
void launch(const char* call, const Kernel& kernel, Stream stream) {
    const int64_t blocks = kernel.blocks();
    if (blocks == 0) return;
    if (blocks > std::numeric_limits<int32_t>::max()) {
        throw std::runtime_error(std::string(call) + ": too large for one launch");
    }
    void* arguments[] = {const_cast<Kernel*>(&kernel)};
    check(call, cudaLaunchKernel(reinterpret_cast<const void*>(&run<Kernel>),
                                 dim3(static_cast<unsigned>(blocks)), dim3(kThreads), arguments, 0,
                                 static_cast<cudaStream_t>(stream)));
}

#define TP_LAUNCH(...) template void launch<__VA_ARGS__>(const char*, const __VA_ARGS__&, Stream);
TP_EACH_KERNEL(TP_LAUNCH)

int device_of(const void* memory) {
    cudaPointerAttributes found;
    if (cudaPointerGetAttributes(&found, memory) != cudaSuccess) {
        cudaGetLastError();
        return -1;
    }
    const bool there = found.type == cudaMemoryTypeDevice || found.type == cudaMemoryTypeManaged;
    return there ? found.device : -1;
}

OnDevice::OnDevice(int device) {
    check("cudaGetDevice", cudaGetDevice(&before_));
    check("cudaSetDevice", cudaSetDevice(device));
}

OnDevice::~OnDevice() { cudaSetDevice(before_); }

void wait_for(Stream stream, Stream producer) {
    cudaEvent_t event;
    check("cudaEventCreate", cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    cudaError_t error = cudaEventRecord(event, static_cast<cudaStream_t>(producer));
    if (error == cudaSuccess) {
        error = cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), event, 0);
    }
    cudaEventDestroy(event);  // takes effect when the event is done
    check("waiting for another stream", error);
}

std::string missing() {
    int driver = 0, devices = 0;
    cudaDriverGetVersion(&driver);
    if (driver == 0) return "there is no NVIDIA driver";
    const cudaError_t error = cudaGetDeviceCount(&devices);
    cudaGetLastError();
    if (error == cudaErrorInsufficientDriver) {
        return "the NVIDIA driver is for CUDA " + version(driver) + ", turnpack was built with " +
               version(CUDART_VERSION);
    }
    if (error == cudaErrorNoDevice || (error == cudaSuccess && devices == 0)) {
        return "there is no CUDA device";
    }
    if (error != cudaSuccess) return std::string("CUDA says: ") + cudaGetErrorString(error);
    for (int device = 0; device < devices; ++device) {
        int major = 0, minor = 0;
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
        if (has_code_for(100 * major + 10 * minor)) return "";
    }
    return "turnpack was built for " + architectures() + ", and no device here can run that";
}

std::string architectures() {
    std::string names;
    for (const int architecture : kArchitectures) {
        names += (names.empty() ? "sm_" : " sm_") + std::to_string(architecture / 10);
    }
    return names;
}

}  // namespace turnpack::cuda
