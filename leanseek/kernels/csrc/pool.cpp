// A pool of workers that any thread may call at any time: the caller works too, and idle workers join it.
//
// Pieces of work are taken from a counter, several at a time while there are many: pieces next to each other are
// neighbours in memory, and what a processor asks for ahead is then its own. Towards the end they are taken one at a
// time, so that a thread that the system has put aside holds up the others by little. Who waits looks out for a bounded
// time and then sleeps: on a machine whose cores are busy, a wait that spins takes the core from the very thread that
// it waits for.
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "kernels.h"
#include "table.h"

namespace {

struct Job {
    leanseek_piece piece;
    void *work;
    int64_t count;
    int threads;                    // that may take part
    int seats;                      // workers that may still join; under the pool's lock
    std::atomic<int64_t> next{0};   // the first piece that nobody has taken
    std::atomic<int> helpers{0};    // workers that joined and have not left
    bool sleeping = false;          // whether the caller sleeps until they have; under the pool's lock
    Job *following = nullptr;
};

struct Pool {
    std::mutex lock;
    std::condition_variable wake, done;
    Job *jobs = nullptr;
    int workers = 0, sleepers = 0;
    std::atomic<uint64_t> posted{0};
};

// Never destroyed: workers outlive `main`.
alignas(Pool) char pool_memory[sizeof(Pool)];
Pool *pool = new (pool_memory) Pool;
std::atomic<int> spin_us{50};
const int MOST_WORKERS = 255;

int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Look out for something, without sleep: most of the time gently, and letting others have the core.
template <class Seen> bool look_out(Seen seen) {
    for (int i = 0; i < 64; i++) {
        if (seen()) return true;
        relax();
    }
    const int64_t end = now_ns() + int64_t(spin_us.load(std::memory_order_relaxed)) * 1000;
    do {
        for (int i = 0; i < 16; i++) {
            if (seen()) return true;
            relax();
        }
        sched_yield();
    } while (now_ns() < end);
    return seen();
}

void run_pieces(Job &job) {
    for (;;) {
        int64_t at = job.next.load(std::memory_order_relaxed), some;
        do {
            if (at >= job.count) return;
            some = (job.count - at) / (2 * job.threads);
            if (some < 1) some = 1;
        } while (!job.next.compare_exchange_weak(at, at + some, std::memory_order_relaxed));
        job.piece(job.work, at, at + some);
    }
}

// Under the lock: a job that has a seat and pieces left.
Job *find_job() {
    for (Job *job = pool->jobs; job; job = job->following)
        if (job->seats > 0 && job->next.load(std::memory_order_relaxed) < job->count) return job;
    return nullptr;
}

void worker() {
    std::unique_lock<std::mutex> held(pool->lock);
    for (;;) {
        if (Job *job = find_job()) {
            job->seats--;
            job->helpers.fetch_add(1, std::memory_order_relaxed);
            held.unlock();
            run_pieces(*job);
            held.lock();
            const bool sleeping = job->sleeping;
            // From here on the caller may be gone, and the job with it.
            if (job->helpers.fetch_sub(1, std::memory_order_release) == 1 && sleeping) pool->done.notify_all();
            continue;
        }
        const uint64_t seen = pool->posted.load(std::memory_order_relaxed);
        held.unlock();
        const bool more = look_out([&] { return pool->posted.load(std::memory_order_acquire) != seen; });
        held.lock();
        if (!more && pool->posted.load(std::memory_order_relaxed) == seen) {
            pool->sleepers++;
            pool->wake.wait(held, [&] { return pool->posted.load(std::memory_order_relaxed) != seen; });
            pool->sleepers--;
        }
    }
}

// Under the lock: have as many workers as a call may want.
void hire(int wanted) {
    if (wanted > MOST_WORKERS) wanted = MOST_WORKERS;
    while (pool->workers < wanted) {
        // Signals are for the threads of the program.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        bool made = true;
        try {
            std::thread(worker).detach();
        } catch (const std::system_error &) {
            made = false;  // fewer threads, the same result
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        if (!made) return;
        pool->workers++;
    }
}

// A child of fork has the memory but not the workers: it starts with an empty pool, and hires its own.
void before_fork() { pool->lock.lock(); }
void after_fork_parent() { pool->lock.unlock(); }
void after_fork_child() { pool = new (pool_memory) Pool; }

struct AtFork {
    AtFork() { pthread_atfork(before_fork, after_fork_parent, after_fork_child); }
} at_fork;

}  // namespace

LEANSEEK_API void leanseek_spin_us(int32_t us) { spin_us.store(us < 0 ? 0 : us); }

void leanseek_parallel_for(leanseek_piece piece, void *work, int64_t count, int threads) {
    if (count <= 0) return;
    if (threads <= 1 || count == 1) {
        piece(work, 0, count);
        return;
    }
    Job job;
    job.piece = piece, job.work = work, job.count = count;
    const int seats = int((count < threads ? count : threads) - 1);
    job.seats = seats, job.threads = seats + 1;
    bool wake;
    {
        std::lock_guard<std::mutex> held(pool->lock);
        hire(seats);
        job.following = pool->jobs;
        pool->jobs = &job;
        pool->posted.fetch_add(1, std::memory_order_release);
        wake = pool->sleepers > 0;
    }
    if (wake) {
        if (seats == 1) pool->wake.notify_one();
        else pool->wake.notify_all();
    }
    run_pieces(job);
    {
        std::lock_guard<std::mutex> held(pool->lock);
        Job **at = &pool->jobs;
        while (*at != &job) at = &(*at)->following;
        *at = job.following;
    }
    if (look_out([&] { return job.helpers.load(std::memory_order_acquire) == 0; })) {
        // The last helper still holds the lock when it says so, and looks at the job no more.
        return;
    }
    std::unique_lock<std::mutex> held(pool->lock);
    job.sleeping = true;
    pool->done.wait(held, [&] { return job.helpers.load(std::memory_order_acquire) == 0; });
}
