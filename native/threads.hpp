// Work shared among threads that wait between calls.
#pragma once

#include <cstdint>
#include <functional>

namespace wkv {

// Runs fn(0) … fn(n_tasks − 1), each once, on at most n_threads threads, the caller's among them,
// and returns when all have ended. Tasks start in order; which thread takes which is not fixed.
// The first exception that a task throws is thrown here, after the others have ended.
// Any number of callers at a time; usable in a child after fork().
void parallel_for(int64_t n_tasks, int n_threads, const std::function<void(int64_t)>& fn);

}  // namespace wkv
