//! A folder to run the program in, and what it said.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

/// Between two looks at the store.
pub(crate) const LOOK: Duration = Duration::from_micros(200);

/// A working folder; the store is `data/store` in it.
pub(crate) struct Bench {
    folder: TempDir,
    /// Variables of its commands.
    variables: BTreeMap<String, String>,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), variables: BTreeMap::new() }
    }

    /// One that lasts as long as the process. Those of processes that have ended are removed.
    pub(crate) fn shared() -> Self {
        let prefix = "wherefrom-shared-";
        for entry in fs::read_dir(std::env::temp_dir()).unwrap().map(|entry| entry.unwrap()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let process = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next());
            if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
                // By another process, perhaps, at the same time.
                let _removed = fs::remove_dir_all(entry.path());
            }
        }
        let folder = tempfile::Builder::new().prefix(&format!("{prefix}{}-", std::process::id())).tempdir();
        Self { folder: folder.unwrap(), variables: BTreeMap::new() }
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path("data/store")
    }

    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// The same with a cache of its own, `cache`.
    pub(crate) fn with_cache(mut self) -> Self {
        let cache = self.path("cache").display().to_string();
        self.variable("XDG_CACHE_HOME", &cache);
        self
    }

    /// Sets a variable of the commands that follow.
    pub(crate) fn variable(&mut self, name: &str, value: &str) {
        self.variables.insert(name.into(), value.into());
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wherefrom"));
        command.args(words).current_dir(self.folder.path());
        // No test asks the hub of the world, or finds what its user has of it.
        for name in ["HF_ENDPOINT", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH"] {
            command.env_remove(name);
        }
        for name in ["http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        for name in ["WHEREFROM_STORE", "WHEREFROM_REMOTE", "OPENAI_BASE_URL", "OPENAI_API_KEY"] {
            command.env_remove(name);
        }
        // How fast the machine is is measured once for all tests.
        static CACHE: LazyLock<Bench> = LazyLock::new(Bench::shared);
        command.env("XDG_CACHE_HOME", CACHE.path("cache"));
        command.env("HF_HOME", self.path("huggingface")).env("HF_HUB_OFFLINE", "1").envs(&self.variables);
        command
    }

    /// Runs to the end. No command may ever panic.
    pub(crate) fn wherefrom(&self, words: &[&str]) -> Said {
        let output = self.command(words).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let said = Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
        assert!(!said.err.contains("panicked"), "{words:?}: {}", said.err);
        said
    }

    /// What a command that succeeds says on stdout.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let said = self.wherefrom(words);
        assert_eq!(said.code, Some(0), "{words:?}: {}", said.err);
        said.out
    }

    /// Makes a step; its folder, as a script asks for it.
    pub(crate) fn made(&self, pipeline: &str, step: &str) -> PathBuf {
        self.ok(&["run", pipeline, "--to", step]);
        self.path(self.ok(&["path", pipeline, step]).trim_end())
    }

    /// What a command that is refused says on stderr.
    pub(crate) fn refused(&self, words: &[&str]) -> String {
        let said = self.wherefrom(words);
        assert_eq!(said.code, Some(2), "{words:?}: {said:?}");
        // What a run warns of comes before what it is refused for.
        let warnings = said.err.lines().take_while(|line| line.starts_with("warning: "));
        let error = said.err[warnings.map(|line| line.len() + 1).sum::<usize>()..].to_string();
        assert!(error.starts_with("error: "), "{words:?}: {}", said.err);
        error
    }

    /// Starts a command; its output goes to the files `NAME.out` and `NAME.err`.
    pub(crate) fn start(&self, words: &[&str], name: &str) -> Running {
        let file = |ending: &str| fs::File::create(self.path(format!("{name}.{ending}"))).unwrap();
        let (out, err) = (Stdio::from(file("out")), Stdio::from(file("err")));
        Running { child: self.command(words).stdout(out).stderr(err).spawn().unwrap() }
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

/// A process that is killed, if need be, when the test is done with it.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// SIGKILL, and the end of it. False if it had ended before.
    pub(crate) fn kill(&mut self) -> bool {
        let alive = self.child.try_wait().unwrap().is_none();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        alive
    }

    pub(crate) fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// SIGSTOP, SIGCONT: through the shell, which has `kill` everywhere.
    pub(crate) fn signal(&self, name: &str) {
        let line = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success(), "{line}");
    }

    /// Waits for `happened`; false if the process ends without it.
    pub(crate) fn until(&mut self, happened: impl Fn() -> bool) -> bool {
        loop {
            let ended = self.child.try_wait().unwrap().is_some();
            if happened() {
                return true;
            }
            if ended {
                return false;
            }
            sleep(LOOK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Inode and modification time: a file that is written again has others.
pub(crate) type Stamp = (u64, i64, i64);

pub(crate) fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
}

/// Every file below `folder`, sorted.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Files of the store that are results, whole or in part: not its locks, marks, memo of digests and records of runs.
pub(crate) fn results(store: &Path) -> Vec<PathBuf> {
    let mut found = files(store);
    found.retain(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let memo = path.parent().is_some_and(|folder| folder.ends_with("digests") || folder.ends_with("records"));
        !["CACHEDIR.TAG", ".gitignore"].contains(&name) && !name.ends_with(".lock") && !memo
    });
    found
}

pub(crate) fn stamps(folder: &Path) -> BTreeMap<PathBuf, Stamp> {
    files(folder).into_iter().map(|path| (path.clone(), stamp(&path))).collect()
}

pub(crate) fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, &target).unwrap();
    }
}

/// The reference model and its rows.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(name).canonicalize().unwrap()
}
