//! Where paths lead: those of a pipeline file from its folder, those of the command line from the current directory; and
//! where the store and the records of runs lie.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use wherefrom_artifact::{Remote, Store};

/// The variable that names the store.
const VARIABLE: &str = "WHEREFROM_STORE";
/// The variable that names the remote.
const REMOTE: &str = "WHEREFROM_REMOTE";
/// Where artifacts lie in the folder of a study.
const STORE: &str = "data/store";
/// The folder whose pipelines belong to the folder around it.
const PIPELINES: &str = "pipelines";

/// What a relative path is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base<'a> {
    /// The folder of the pipeline file that names it.
    Pipeline(&'a Path),
    /// The current directory: it was given with `--set`.
    Here,
}

impl Base<'_> {
    /// Where the path leads.
    pub(crate) fn locate(self, path: &str) -> PathBuf {
        match self {
            Self::Pipeline(folder) => tidy(&folder.join(path)),
            Self::Here => path.into(),
        }
    }

    /// From where a path was taken, to follow an error about it; nothing of one that is absolute.
    pub(crate) fn explain(self, path: &str) -> String {
        if Path::new(path).is_absolute() {
            return String::new();
        }
        match self {
            Self::Pipeline(folder) => {
                format!(" (`{path}` is taken from the folder of the pipeline, {})", real(folder).display())
            }
            Self::Here => {
                format!(" (`{path}` of --set is taken from the current directory, {})", real(Path::new("")).display())
            }
        }
    }
}

/// From where a path of the command line was taken, to follow an error about it; nothing of one that is absolute or of the hub.
pub(crate) fn explain_here(path: &Path) -> String {
    let text = path.to_string_lossy();
    if path.is_absolute() || text.starts_with("hf:") {
        return String::new();
    }
    format!(" (`{text}` is taken from the current directory, {})", real(Path::new("")).display())
}

/// The folder of a file; empty where that is the current directory.
pub(crate) fn folder(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}

/// The way to `path` from `folder`, where both are named from the current directory; neither need be there.
pub(crate) fn between(folder: &Path, path: &Path) -> PathBuf {
    if path.is_absolute() || folder.as_os_str().is_empty() {
        return path.into();
    }
    let here = real(Path::new(""));
    let [from, to] = [folder, path].map(|path| tidy(&here.join(path)));
    let shared = from.components().zip(to.components()).take_while(|(one, other)| one == other).count();
    let up = from.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(to.components().skip(shared)).collect()
}

/// The same path without `a/..`, where `a` is a folder and no link.
fn tidy(path: &Path) -> PathBuf {
    let mut tidied = PathBuf::new();
    for part in path.components() {
        let named = matches!(tidied.components().next_back(), Some(Component::Normal(_)));
        let is_folder = || std::fs::symlink_metadata(&tidied).is_ok_and(|metadata| metadata.is_dir());
        match part {
            Component::CurDir => {}
            Component::ParentDir if named && is_folder() => drop(tidied.pop()),
            part => tidied.push(part),
        }
    }
    if tidied.as_os_str().is_empty() { ".".into() } else { tidied }
}

/// The folder without links, or at least absolute.
fn real(folder: &Path) -> PathBuf {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let absolute = || std::path::absolute(folder).unwrap_or_else(|_| folder.into());
    folder.canonicalize().unwrap_or_else(|_| absolute())
}

/// Why a store is the one that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// `--store`.
    Named,
    /// `WHEREFROM_STORE`.
    Variable,
    /// It is the nearest at or above the folder of the pipeline, or without one the current directory.
    Nearest,
    /// There is none yet.
    New,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Named => "as --store says",
            Self::Variable => "as WHEREFROM_STORE says",
            Self::Nearest => "the nearest data/store at or above the folder of the pipeline",
            Self::New => "new: there is no data/store at or above the folder of the pipeline",
        })
    }
}

/// The place where others keep what they have sealed: `named`, else `WHEREFROM_REMOTE`; none without either.
///
/// # Errors
/// As [`wherefrom_remote::open`].
pub fn remote(named: Option<&str>) -> Result<Option<Arc<dyn Remote>>> {
    let variable = || std::env::var(REMOTE).ok().filter(|named| !named.is_empty());
    named.map(String::from).or_else(variable).map(|address| wherefrom_remote::open(&address)).transpose()
}

/// The store: `named`, else `WHEREFROM_STORE`, else the nearest `data/store` at or above the folder of `pipeline` (or the
/// current directory), else `data/store` beside it. Beside a pipeline in a folder `pipelines` means beside that folder.
pub fn store(named: Option<&Path>, pipeline: Option<&Path>) -> (Store, Why) {
    if let Some(named) = named {
        return (Store::new(named), Why::Named);
    }
    if let Some(named) = std::env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
        return (Store::new(PathBuf::from(named)), Why::Variable);
    }
    let folder = real(pipeline.map_or(Path::new(""), folder));
    // A link to nowhere is there, too: whoever laid it meant it.
    let has_store = |folder: &&Path| std::fs::symlink_metadata(folder.join(STORE)).is_ok();
    let (place, why) = match folder.ancestors().find(has_store) {
        Some(found) => (found, Why::Nearest),
        None if folder.file_name() == Some(OsStr::new(PIPELINES)) => (folder.parent().unwrap_or(&folder), Why::New),
        None => (&*folder, Why::New),
    };
    let place = place.join(STORE);
    let here = real(Path::new(""));
    (Store::new(place.strip_prefix(&here).unwrap_or(&place)), why)
}

/// The folder that has `data/store`, of a store that is one.
fn study(store: &Path) -> Option<PathBuf> {
    let store = std::path::absolute(store).unwrap_or_else(|_| store.into());
    store.ends_with(STORE).then(|| store.ancestors().nth(2).map(real)).flatten()
}

/// The pipeline file as the records of its runs name it: from the folder that has `data/store`, which may be moved, where it lies
/// there; else absolute.
pub fn pipeline_name(store: &Path, pipeline: &Path) -> String {
    let path = real(folder(pipeline)).join(pipeline.file_name().unwrap_or_default());
    let inside = study(store).and_then(|study| Some(path.strip_prefix(study).ok()?.to_path_buf()));
    inside.unwrap_or(path).display().to_string()
}

/// The pipeline file that records name so, from here if it lies below.
pub fn pipeline_path(store: &Path, name: &str) -> PathBuf {
    let path = study(store).unwrap_or_default().join(name);
    path.strip_prefix(real(Path::new(""))).unwrap_or(&path).into()
}

/// Where the record of a pipeline's runs lies: in the folder `runs` beside the store, and no two pipelines share one.
///
/// | pipeline, from the folder that has `data/store` | record |
/// |---|---|
/// | `study.toml`, `pipelines/study.toml` | `study` |
/// | `pipelines/study.toml` where there is a `study.toml` too | `pipelines/study` |
/// | `a/b/study.toml` | `a/b/study` |
/// | any other: outside of it, without `.toml`, or of a store elsewhere | its name, and the first 8 digits of BLAKE3 of its path |
pub(crate) fn record(store: &Path, pipeline: &Path) -> PathBuf {
    let store = std::path::absolute(store).unwrap_or_else(|_| store.into());
    let study = study(&store);
    let runs = store.parent().unwrap_or(Path::new("/")).join("runs");
    let name = pipeline.file_name().unwrap_or_default();
    let stem = pipeline.file_stem().filter(|_| pipeline.extension().is_some_and(|ending| ending == "toml"));
    let folder = real(folder(pipeline));
    let inside = study.as_ref().and_then(|study| Some((study, folder.strip_prefix(study).ok()?)));
    runs.join(match (stem, inside) {
        (Some(stem), Some((study, inside))) if inside == Path::new(PIPELINES) && !study.join(name).exists() => {
            stem.into()
        }
        (Some(stem), Some((_, inside))) => inside.join(stem),
        _ => {
            let digest = blake3::hash(folder.join(name).as_os_str().as_encoded_bytes()).to_hex();
            let mut marked = stem.unwrap_or(name).to_owned();
            marked.push(format!("-{}", &digest[..8]));
            PathBuf::from(marked)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A folder with these folders in it.
    fn folders(names: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| std::fs::create_dir_all(place.path().join(name)).unwrap());
        let root = place.path().canonicalize().unwrap();
        (place, root)
    }

    #[test]
    fn no_two_pipelines_share_a_record() {
        let (_place, root) = folders(&["study/data/store", "study/pipelines", "study/a/b", "other"]);
        let store = root.join("study/data/store");
        let names = ["study/p.toml", "study/a/b/p.toml", "study/a/p", "study/a/p.txt", "other/p.toml", "p.toml"];
        let records: BTreeSet<PathBuf> = names.iter().map(|name| record(&store, &root.join(name))).collect();
        assert_eq!(records.len(), names.len(), "{records:?}");
        let runs = root.join("study/data/runs");
        for (pipeline, expected) in [
            ("study/p.toml", "p"),
            ("study/./p.toml", "p"),
            ("study/pipelines/p.toml", "p"),
            ("study/a/b/p.toml", "a/b/p"),
            ("study/a/../a/p.toml", "a/p"),
        ] {
            assert_eq!(record(&store, &root.join(pipeline)), runs.join(expected));
        }
        std::fs::write(root.join("study/p.toml"), "").unwrap();
        assert_eq!(record(&store, &root.join("study/pipelines/p.toml")), runs.join("pipelines/p"));
        // A store elsewhere: beside it, and told apart by their paths.
        let elsewhere = ["study/p.toml", "other/p.toml"].map(|name| record(&root.join("cache"), &root.join(name)));
        assert_ne!(elsewhere[0], elsewhere[1]);
        assert!(elsewhere.iter().all(|record| record.starts_with(root.join("runs"))), "{elsewhere:?}");
    }

    #[test]
    fn the_store_is_the_nearest_at_or_above_the_pipeline() {
        let (_place, root) = folders(&["a/data/store", "a/b/c", "a/b/pipelines", "new/pipelines"]);
        let found = |pipeline: &str| {
            let (store, why) = store(None, Some(&root.join(pipeline)));
            (store.root().to_path_buf(), why)
        };
        assert_eq!(found("a/p.toml"), (root.join("a/data/store"), Why::Nearest));
        assert_eq!(found("a/b/c/p.toml"), (root.join("a/data/store"), Why::Nearest));
        assert_eq!(found("new/p.toml"), (root.join("new/data/store"), Why::New));
        assert_eq!(found("new/pipelines/p.toml"), (root.join("new/data/store"), Why::New));
        #[cfg(unix)]
        {
            std::fs::create_dir_all(root.join("a/b/data")).unwrap();
            std::os::unix::fs::symlink(root.join("a/data/store"), root.join("a/b/data/store")).unwrap();
            assert_eq!(found("a/b/pipelines/p.toml"), (root.join("a/b/data/store"), Why::Nearest));
            // The folder of a pipeline is where it lies, whatever link leads there.
            std::os::unix::fs::symlink(root.join("a/b/c"), root.join("new/link")).unwrap();
            assert_eq!(found("new/link/p.toml"), (root.join("a/b/data/store"), Why::Nearest));
        }
        assert_eq!(store(Some(Path::new("x")), None).1, Why::Named);
    }

    #[test]
    fn a_pipeline_names_what_lies_elsewhere() {
        for (folder, path, way) in [
            ("", "data/x", "data/x"),
            ("pipelines", "data/x", "../data/x"),
            ("a/b", "a/c/*.jsonl", "../c/*.jsonl"),
            ("a", "a/x", "x"),
            ("a", "/x", "/x"),
        ] {
            assert_eq!(between(Path::new(folder), Path::new(path)), Path::new(way), "{folder} {path}");
        }
    }

    #[test]
    fn a_folder_and_back_is_no_way_but_for_a_link() {
        let (_place, root) = folders(&["pipelines", "data"]);
        assert_eq!(Base::Pipeline(&root.join("pipelines")).locate("../data/x"), root.join("data/x"));
        assert_eq!(Base::Pipeline(&root.join("nowhere")).locate("../data/x"), root.join("nowhere/../data/x"));
        assert_eq!(Base::Pipeline(Path::new("")).locate("data/x"), Path::new("data/x"));
        assert_eq!(Base::Pipeline(Path::new("pipelines")).locate("/data/x"), Path::new("/data/x"));
        assert_eq!(Base::Here.locate("../data/x"), Path::new("../data/x"));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(root.join("data"), root.join("link")).unwrap();
            assert_eq!(Base::Pipeline(&root.join("link")).locate("../x"), root.join("link/../x"));
        }
    }
}
