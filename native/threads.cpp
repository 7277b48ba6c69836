#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace wkv {
namespace {

struct Job {
    const std::function<void(int64_t)>& fn;
    const int64_t n_tasks;
    std::atomic<int64_t> next{0};
    int wanted;      // helpers that may still join; guarded by the pool's mutex, as are the two below
    int active = 0;  // helpers inside run()
    std::exception_ptr error{};

    void run(std::mutex& mutex) {
        for (int64_t i; (i = next.fetch_add(1)) < n_tasks;) {
            try {
                fn(i);
            } catch (...) {
                std::lock_guard lock(mutex);
                if (!error) error = std::current_exception();
            }
        }
    }
};

class Pool {
public:
    void run(Job& job) {
        {
            std::lock_guard lock(mutex_);
            // One thread for each helper this job wants; earlier, idle ones are among them.
            while (workers_ < job.wanted) {
                std::thread([this] { work(); }).detach();
                ++workers_;
            }
            jobs_.push_back(&job);
        }
        wake_.notify_all();
        job.run(mutex_);
        std::unique_lock lock(mutex_);
        if (auto it = std::find(jobs_.begin(), jobs_.end(), &job); it != jobs_.end()) jobs_.erase(it);
        done_.wait(lock, [&] { return job.active == 0; });
    }

private:
    void work() {
        std::unique_lock lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return !jobs_.empty(); });
            Job& job = *jobs_.front();
            ++job.active;
            if (--job.wanted == 0) jobs_.pop_front();
            lock.unlock();
            job.run(mutex_);
            lock.lock();
            // The job lies on its caller's stack: it may be gone once active is 0 and the lock free.
            if (--job.active == 0) done_.notify_all();
            if (!jobs_.empty() && jobs_.front() == &job) jobs_.pop_front();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    std::deque<Job*> jobs_;
    int workers_ = 0;
};

// Never destroyed: its threads wait in it until the process ends.
Pool* pool = nullptr;

Pool& the_pool() {
    static const bool made = [] {
        pool = new Pool;
#ifndef _WIN32
        // A child of fork() has none of the threads and perhaps a locked mutex: it starts anew.
        pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
#endif
        return true;
    }();
    (void)made;
    return *pool;
}

}  // namespace

void parallel_for(int64_t n_tasks, int n_threads, const std::function<void(int64_t)>& fn) {
    const int helpers = static_cast<int>(std::min<int64_t>(n_threads, n_tasks)) - 1;
    if (helpers <= 0) {
        for (int64_t i = 0; i < n_tasks; ++i) fn(i);
        return;
    }
    Job job{.fn = fn, .n_tasks = n_tasks, .wanted = helpers};
    the_pool().run(job);
    if (job.error) std::rethrow_exception(job.error);
}

}  // namespace wkv
