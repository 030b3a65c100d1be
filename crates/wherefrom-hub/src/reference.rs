//! `hf:` names, spelled as the hub's own URIs are: `hf://[TYPE/]OWNER/NAME[@REVISION][/PATH]`, the `//` optional.

use std::fmt;

/// A repository of the hub at a revision; with a path, files in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// Whether it is of the hub's datasets; else of its models.
    pub(crate) dataset: bool,
    /// `owner/name`.
    pub(crate) repository: String,
    /// Branch, tag, commit, `refs/pr/N` or `refs/convert/NAME`.
    pub(crate) revision: String,
    /// A file, a folder or a glob in it; empty for all that is of use.
    pub(crate) path: String,
}

impl Reference {
    /// None if `text` is no name of the hub but a path.
    ///
    /// # Errors
    /// What is wrong with the name, and how it is written.
    pub fn parse(text: &str) -> Option<Result<Self, String>> {
        let name = text.strip_prefix("hf:")?;
        let name = name.strip_prefix("//").unwrap_or(name);
        Some(Self::read(name).ok_or_else(|| {
            format!(
                "`{text}` is no name of the Hugging Face hub; write hf:OWNER/NAME or hf:OWNER/NAME@REVISION for a model, \
                 hf:datasets/OWNER/NAME@REVISION/PATH for files of a dataset"
            )
        }))
    }

    fn read(name: &str) -> Option<Self> {
        let (dataset, name) = match name.split_once('/')? {
            ("datasets", rest) => (true, rest),
            ("models", rest) => (false, rest),
            _ => (false, name),
        };
        let (owner, rest) = name.split_once('/')?;
        let end = rest.find(['@', '/']).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let (revision, path) = match rest.strip_prefix('@') {
            Some(rest) => revision(rest),
            None => ("main", rest.strip_prefix('/').unwrap_or("")),
        };
        let revision = revision.replace("%2F", "/");
        let plain = |word: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !word.is_empty() && word.chars().all(known) && !word.starts_with('.')
        };
        let path = path.trim_end_matches('/');
        let inside = path.is_empty() || path.split('/').all(|word| !["", ".", ".."].contains(&word));
        (plain(owner) && plain(name) && revision.split('/').all(plain) && inside).then(|| Self {
            dataset,
            repository: format!("{owner}/{name}"),
            revision,
            path: path.into(),
        })
    }

    /// Whether it names a checkpoint, not files.
    pub fn is_model(&self) -> bool {
        !self.dataset && self.path.is_empty()
    }

    /// `models--owner--name`: its folder in the cache.
    pub(crate) fn folder(&self) -> String {
        let kind = if self.dataset { "datasets" } else { "models" };
        format!("{kind}--{}", self.repository.replace('/', "--"))
    }

    /// Its page, below the endpoint.
    pub(crate) fn page(&self) -> String {
        if self.dataset { format!("datasets/{}", self.repository) } else { self.repository.clone() }
    }
}

/// Revision and path of what follows the `@`. Two kinds of revision have slashes of their own.
fn revision(rest: &str) -> (&str, &str) {
    let slashes = if rest.starts_with("refs/convert/") || rest.starts_with("refs/pr/") { 2 } else { 0 };
    match rest.match_indices('/').nth(slashes) {
        Some((end, _)) => (&rest[..end], &rest[end + 1..]),
        None => (rest, ""),
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}@{}", self.page(), self.revision)?;
        if self.path.is_empty() { Ok(()) } else { write!(f, "/{}", self.path) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        Reference::parse(text).unwrap().unwrap().to_string()
    }

    #[test]
    fn names_are_read_as_the_hub_writes_them() {
        assert_eq!(read("hf:owner/name"), "hf:owner/name@main");
        assert_eq!(read("hf://models/owner/name@v1.0"), "hf:owner/name@v1.0");
        assert_eq!(read("hf:datasets/o/n/data/train-*.parquet"), "hf:datasets/o/n@main/data/train-*.parquet");
        assert_eq!(read("hf:datasets/o/n@abc123/data/"), "hf:datasets/o/n@abc123/data");
        let converted = Reference::parse("hf:datasets/o/n@refs/convert/parquet/default/train").unwrap().unwrap();
        assert_eq!((&*converted.revision, &*converted.path), ("refs/convert/parquet", "default/train"));
        let pull = Reference::parse("hf:o/n@refs/pr/12").unwrap().unwrap();
        assert_eq!((&*pull.revision, &*pull.path, pull.is_model()), ("refs/pr/12", "", true));
        assert_eq!(Reference::parse("hf:o/n@my%2Fbranch").unwrap().unwrap().revision, "my/branch");
        assert!(Reference::parse("data/models/mine").is_none());
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in
            ["hf:", "hf:gpt2", "hf:datasets/squad", "hf:o/n@", "hf:o/../n", "hf:o/n/../../x", "hf:o/n@../x", "hf:o//n"]
        {
            assert!(Reference::parse(text).unwrap().is_err(), "{text}");
        }
    }
}
