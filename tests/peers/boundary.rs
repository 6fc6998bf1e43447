//! An enclave's own CPU and memory. An enclave is a machine; a supervisor in namespaces sees the memory and
//! CPU time of the machine that it shares with everything else. So each of them gets a `/proc/meminfo` and
//! `/proc/stat` of its own, as lxcfs gives them to containers, kept up to date with what its processes use.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::process::descendants;

/// Memory of an enclave.
const TOTAL_KIB: u64 = 1 << 20;
/// Between two readings: several within a sample's interval.
const PACE: Duration = Duration::from_millis(200);
const PAGE_KIB: u64 = 4;
/// `/proc/stat` counts in 1/100 s.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;
/// The files keep their length, so that a reader never sees a part of one.
const FILE_BYTES: usize = 1024;

/// The files, and the thread that writes them. It ends with this value.
pub(crate) struct Boundary {
    directory: PathBuf,
    root: Arc<AtomicI32>,
    done: Arc<AtomicBool>,
}

impl Boundary {
    /// Makes the files in a directory of their own.
    pub(crate) fn new(directory: &Path) -> Self {
        fs::create_dir_all(directory).unwrap();
        let boundary =
            Self { directory: directory.to_owned(), root: Arc::new(AtomicI32::new(0)), done: Arc::default() };
        let create = |name: &str| File::create(directory.join(name)).unwrap();
        let (memory, cpu) = (create("meminfo"), create("stat"));
        let mut account = Account::default();
        account.write(&memory, &cpu);
        let (root, done) = (Arc::clone(&boundary.root), Arc::clone(&boundary.done));
        thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                let pid = root.load(Ordering::Relaxed);
                if pid != 0 {
                    account.read(pid);
                }
                account.write(&memory, &cpu);
                thread::park_timeout(PACE);
            }
        });
        boundary
    }

    /// Words through which the supervisor is started, in a mount namespace of its own.
    pub(crate) fn through(&self) -> Vec<String> {
        let script =
            "mount --bind \"$0/meminfo\" /proc/meminfo && mount --bind \"$0/stat\" /proc/stat && exec \"$@\"";
        ["sh", "-c", script, &self.directory.display().to_string()].map(str::to_owned).to_vec()
    }

    /// From now on the process and all below it are what the enclave uses.
    pub(crate) fn follow(&self, pid: i32) {
        self.root.store(pid, Ordering::Relaxed);
    }
}

impl Drop for Boundary {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// What the enclave's processes use, and used.
struct Account {
    started: Instant,
    memory_kib: u64,
    /// Nanoseconds on a CPU, and waiting for one, by thread: those that are gone are kept.
    threads: BTreeMap<i32, (u64, u64)>,
}

impl Default for Account {
    fn default() -> Self {
        Self { started: Instant::now(), memory_kib: 0, threads: BTreeMap::new() }
    }
}

impl Account {
    fn read(&mut self, root: i32) {
        let mut pids = descendants(root);
        pids.push(root);
        self.memory_kib = pids.iter().filter_map(|pid| resident_kib(*pid)).sum();
        for pid in pids {
            for thread in
                fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(Result::ok)
            {
                // A thread that has ended meanwhile keeps its last reading.
                let id = thread.file_name().to_str().and_then(|name| name.parse().ok());
                let times = fs::read_to_string(thread.path().join("schedstat")).ok();
                if let (Some(id), Some(times)) = (id, times) {
                    let mut times = times.split_whitespace().map(|word| word.parse::<u64>().unwrap_or(0));
                    let (run, waited) = (times.next().unwrap_or(0), times.next().unwrap_or(0));
                    self.threads.insert(id, (run, waited));
                }
            }
        }
    }

    /// Writes both files. The enclave has one CPU; time in which its threads waited for the machine's is
    /// stolen.
    fn write(&self, memory: &File, cpu: &File) {
        let taken = self.memory_kib.min(TOTAL_KIB);
        let free = TOTAL_KIB - taken;
        let text = format!(
            "MemTotal: {TOTAL_KIB} kB\nMemFree: {free} kB\nMemAvailable: {free} kB\nBuffers: 0 kB\nCached: 0 kB\n\
             SwapCached: 0 kB\nActive: {taken} kB\nInactive: 0 kB\nActive(anon): {taken} kB\nInactive(anon): 0 kB\n\
             Active(file): 0 kB\nInactive(file): 0 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\nDirty: 0 kB\nWriteback: 0 kB\n\
             AnonPages: {taken} kB\nMapped: 0 kB\nShmem: 0 kB\nSlab: 0 kB\nCommitted_AS: 0 kB\nVmallocTotal: 0 kB\n\
             VmallocUsed: 0 kB\nVmallocChunk: 0 kB\n"
        );
        put(memory, &text);

        let elapsed = u64::try_from(self.started.elapsed().as_nanos()).unwrap() / NANOSECONDS_PER_TICK;
        let (run, waited) =
            self.threads.values().fold((0, 0), |sum, times| (sum.0 + times.0, sum.1 + times.1));
        let user = (run / NANOSECONDS_PER_TICK).min(elapsed);
        let steal = (waited / NANOSECONDS_PER_TICK).min(elapsed - user);
        let idle = elapsed - user - steal;
        let line = format!("{user} 0 0 {idle} 0 0 0 {steal} 0 0");
        put(
            cpu,
            &format!(
                "cpu  {line}\ncpu0 {line}\nintr 0\nctxt 0\nbtime 1\nprocesses 1\nprocs_running 1\nprocs_blocked 0\n"
            ),
        );
    }
}

fn resident_kib(pid: i32) -> Option<u64> {
    let pages = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    Some(pages.split(' ').nth(1)?.parse::<u64>().ok()? * PAGE_KIB)
}

fn put(file: &File, text: &str) {
    assert!(text.len() < FILE_BYTES, "{}", text.len());
    file.write_all_at(format!("{text}{}", "\n".repeat(FILE_BYTES - text.len())).as_bytes(), 0).unwrap();
}
