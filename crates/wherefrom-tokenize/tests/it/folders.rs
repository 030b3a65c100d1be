//! What a folder or a glob holds: packed files, cards, loops of links, pipes; and rows that have no end.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;
use wherefrom_artifact::{Error, Example};
use wherefrom_tokenize::corpus_files;
use wherefrom_tokenize::tokenize::Config;

use crate::{Bench, config, tokenizer_file};

/// A configuration of its own for each reading, whose result is then not the one of before.
fn fresh() -> Config {
    static READ: AtomicUsize = AtomicUsize::new(64);
    config(READ.fetch_add(1, Ordering::Relaxed))
}

fn read(bench: &Bench, corpus: &Path) -> Vec<Example> {
    let tokens = bench.tokenize(&fresh(), corpus, Some(tokenizer_file())).unwrap();
    tokens.rows().unwrap().map(Result::unwrap).collect()
}

fn docs(bench: &Bench, corpus: &Path) -> Vec<String> {
    read(bench, corpus).into_iter().flat_map(|row| row.docs).collect()
}

fn refusal(bench: &Bench, corpus: &Path) -> String {
    let error = bench.tokenize(&fresh(), corpus, Some(tokenizer_file())).expect_err(&corpus.display().to_string());
    match error.downcast::<Error>() {
        Ok(Error::Input(message)) => message,
        other => panic!("{other:?}"),
    }
}

fn line(text: &str) -> String {
    format!("{{\"text\": \"{text}\"}}\n")
}

fn gzip(text: &str) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(text.as_bytes()).unwrap();
    packed.finish().unwrap()
}

#[test]
fn every_member_of_a_packed_file_is_read() {
    let bench = Bench::new();
    let folder = bench.folder.path().join("c");
    fs::create_dir(&folder).unwrap();
    let members = [gzip(&line("And")), gzip(""), gzip(&line("the earth"))].concat();
    fs::write(folder.join("a.jsonl.gz"), members).unwrap();
    let frames = [line("was"), line("without form")].map(|line| zstd::encode_all(line.as_bytes(), 3).unwrap()).concat();
    fs::write(folder.join("b.jsonl.zst"), frames).unwrap();
    // A window that is larger than zstd reads unasked.
    let mut long = zstd::Encoder::new(Vec::new(), 1).unwrap();
    long.long_distance_matching(true).unwrap();
    long.window_log(30).unwrap();
    long.write_all(line("and void").as_bytes()).unwrap();
    long.flush().unwrap();
    fs::write(folder.join("c.jsonl.zst"), long.finish().unwrap()).unwrap();
    let found = read(&bench, &folder);
    let texts: Vec<_> = found.iter().map(|row| &row.text[..]).collect();
    assert_eq!(texts, ["And", "the earth", "was", "without form", "and void"]);
    assert_eq!(docs(&bench, &folder), ["a/0", "a/1", "b/0", "b/1", "c/0"]);

    let whole = gzip(&line("And the earth was without form, and void"));
    let cut = bench.file("cut.jsonl.gz", &whole[..whole.len() - 9]);
    assert!(refusal(&bench, &cut).contains("cut.jsonl.gz: cannot be unpacked"));
    assert!(refusal(&bench, &bench.file("none.jsonl.gz", "{}")).contains("none.jsonl.gz: cannot be unpacked"));
    // A part of the resumed run begins within a packed file: see resume.rs for plain ones.
    assert_eq!(read(&bench, &bench.file("text.txt.gz", gzip("And\n\nthe earth")))[1].text, "the earth");
}

#[test]
fn cards_are_no_rows_and_what_is_passed_over_is_said() {
    let bench = Bench::new();
    let folder = bench.folder.path().join("c");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("train.jsonl.gz"), gzip(&line("And the earth"))).unwrap();
    for card in ["README.md", "LICENSE.txt", "dataset_infos.json", "state.json", "picture.png"] {
        fs::write(folder.join(card), "not a row").unwrap();
    }
    fs::write(folder.join(".gitattributes"), "hidden").unwrap();
    assert_eq!(docs(&bench, &folder), ["train/0"]);
    let said = bench.warnings();
    let names = "c: not read: LICENSE.txt, README.md, dataset_infos.json, picture.png, state.json";
    assert!(said.len() == 1 && said[0].ends_with(names), "{said:?}");
    // A glob passes over cards, too, unless it names one.
    assert_eq!(docs(&bench, &folder.join("*.[jt]*[lzt]*")), ["train/0"]);
    assert_eq!(docs(&bench, &folder.join("README.md")), ["row 0"]);
    // Data of a kind that is not read is not passed over.
    fs::write(folder.join("more.csv"), "text\nAnd").unwrap();
    let message = refusal(&bench, &folder);
    assert!(message.contains("the folder has more.csv, which is not read") && message.contains("glob"), "{message}");
    // Neither is a corpus whose name begins as that of a card does.
    let other = bench.folder.path().join("d");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("README.md"), "A card.").unwrap();
    let message = refusal(&bench, &other);
    assert!(message.contains("no corpus file but README.md, passed over unless named"), "{message}");
    fs::write(other.join("readme_rows.jsonl"), line("And")).unwrap();
    fs::write(other.join("license.jsonl"), line("And the")).unwrap();
    assert_eq!(docs(&bench, &other), ["license/0", "readme_rows/0"]);
}

#[test]
fn a_file_is_read_once_however_many_links_lead_to_it() {
    let bench = Bench::new();
    let folder = bench.folder.path().join("c");
    fs::create_dir_all(folder.join("z")).unwrap();
    fs::write(folder.join("m.jsonl"), line("And")).unwrap();
    fs::write(folder.join("z/n.jsonl"), line("the earth")).unwrap();
    for loops in ["a", "z/up", "z/b"] {
        symlink(&folder, folder.join(loops)).unwrap();
    }
    symlink(folder.join("z"), folder.join("b")).unwrap();
    symlink(folder.join("m.jsonl"), folder.join("c.jsonl")).unwrap();
    assert_eq!(docs(&bench, &folder), ["m/0", "z/n/0"]);
    assert!(bench.warnings()[0].contains("not read: c.jsonl (the same file as m.jsonl)"), "{:?}", bench.warnings());
    assert_eq!(docs(&bench, &folder.join("**/*.jsonl")), ["m/0", "z/n/0"]);
    // Named alone, a link is its file.
    assert_eq!(docs(&bench, &folder.join("b/*.jsonl")), ["n/0"]);
    symlink(folder.join("self.jsonl"), folder.join("self.jsonl")).unwrap();
    assert!(refusal(&bench, &folder).contains("self.jsonl: cannot be read"));
    assert!(refusal(&bench, &folder.join("self.jsonl")).contains("self.jsonl: cannot be read"));
}

#[test]
fn pipes_sockets_and_devices_are_refused_unopened() {
    let bench = Bench::new();
    let folder = bench.folder.path().join("c");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.jsonl"), line("And")).unwrap();
    let socket = folder.join("b.jsonl");
    let _listener = UnixListener::bind(&socket).unwrap();
    let refusal = |corpus: &Path| corpus_files(corpus).unwrap_err().to_string();
    for corpus in [&folder, &socket, &folder.join("*.jsonl")] {
        let message = refusal(corpus);
        assert!(message.contains("b.jsonl: is a socket, not a file"), "{message}");
    }
    fs::remove_file(&socket).unwrap();
    let made = std::process::Command::new("mkfifo").arg(folder.join("p.jsonl.gz")).status();
    assert!(made.unwrap().success());
    assert!(refusal(&folder).contains("p.jsonl.gz: is a pipe, not a file"));
    assert!(refusal(&folder.join("p.jsonl.gz")).contains("is a pipe, not a file"));
    let device = folder.join("zero.txt");
    symlink("/dev/zero", &device).unwrap();
    assert!(refusal(&device).contains("zero.txt: is a device, not a file"));
}

#[test]
fn a_glob_looks_through_the_folders_it_names_alone() {
    let bench = Bench::new();
    let folder = bench.folder.path().join("c");
    fs::create_dir_all(folder.join("en/deep")).unwrap();
    fs::create_dir_all(folder.join("de")).unwrap();
    for name in ["en/a", "en/deep/b", "de/c"] {
        fs::write(folder.join(name).with_extension("jsonl"), line("And")).unwrap();
    }
    // A pipe in a folder that is not named is never looked at.
    assert_eq!(docs(&bench, &folder.join("e*/*.jsonl")), ["en/a/0"]);
    assert_eq!(docs(&bench, &folder.join("{en/deep,de}/*.jsonl")), ["de/c/0", "en/deep/b/0"]);
    assert_eq!(docs(&bench, &folder.join("**/[bc].jsonl")), ["de/c/0", "en/deep/b/0"]);
    let began = std::time::Instant::now();
    for glob in ["/*.jsonl", "/*/none-of-this.jsonl"] {
        assert!(refusal(&bench, Path::new(glob)).contains("matches no file"), "{glob}");
    }
    assert!(began.elapsed().as_secs() < 20);
    assert!(refusal(&bench, Path::new("[.jsonl")).contains("the glob is malformed"));
}

#[test]
fn a_row_has_an_end() {
    let bench = Bench::new();
    let zeros = |bytes: usize| vec![b'0'; bytes];
    let mut packed = zstd::Encoder::new(Vec::new(), 1).unwrap();
    packed.write_all(line("And").as_bytes()).unwrap();
    for _ in 0..100 {
        packed.write_all(&zeros(1 << 20)).unwrap();
    }
    let packed = packed.finish().unwrap();
    assert!(packed.len() < 1 << 16);
    for (name, content) in [
        ("bomb.jsonl.zst", packed),
        ("bomb.jsonl.gz", gzip(&format!("{}{}", line("And"), "0".repeat(17 << 20)))),
        ("plain.jsonl", [line("And").into_bytes(), zeros(17 << 20)].concat()),
        ("lines.txt", [b"And\n\n"[..].to_vec(), "x\n".repeat(9 << 20).into_bytes()].concat()),
    ] {
        let corpus = bench.file(name, content);
        let message = refusal(&bench, &corpus);
        let row = if name == "lines.txt" { ":3: " } else { ":2: " };
        assert!(message.contains(&format!("{name}{row}")) || name == "lines.txt", "{message}");
        assert!(message.contains("the row is longer than 16 MiB; split it"), "{message}");
    }
}
