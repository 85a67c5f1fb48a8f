// Owns a Planner that many threads may use: one at a time gets to it. No Python here.
#pragma once

#include <mutex>
#include <utility>

#include "kernels.h"

namespace turnpack {

class SharedPlanner {
    using Lock = std::lock_guard<std::mutex>;

  public:
    SharedPlanner(int64_t capacity, int64_t window, int64_t align, int64_t max_rows)
        : planner_(capacity, window, align, max_rows) {}

    Closed add(const int64_t* lengths, int64_t size) {
        const Lock alone(mutex_);
        return planner_.add(lengths, size);
    }

    Closed flush() {
        const Lock alone(mutex_);
        return planner_.flush();
    }

    Planner::State state() {
        const Lock alone(mutex_);
        return planner_.state();
    }

    void load(Planner::State state) {
        const Lock alone(mutex_);
        planner_.load(std::move(state));
    }

  private:
    Planner planner_;
    std::mutex mutex_;
};

}  // namespace turnpack
