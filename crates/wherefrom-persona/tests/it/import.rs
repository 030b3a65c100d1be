//! Vectors in files of other programs: what torch, safetensors and gguf wrote is read bit for bit, and what is no such file is refused
//! by its name.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::SafeTensors;
use wherefrom_artifact::{Error, Over, TraitVector};
use wherefrom_persona::import::{Said, read};

use crate::{WIDTH, fixtures};

fn file(name: &str) -> PathBuf {
    fixtures().join("import").join(name)
}

/// `marker.OVER` of the file that the safetensors library wrote, and so the values of all others.
fn expected(over: &str) -> Vec<f32> {
    let bytes = std::fs::read(file("marker.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let values = tensors.tensor(&format!("marker.{over}")).unwrap().data().chunks_exact(4);
    values.map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
}

fn bits(values: impl IntoIterator<Item = f32>) -> Vec<u32> {
    values.into_iter().map(f32::to_bits).collect()
}

fn of(rows: &[TraitVector], over: Over) -> Vec<u32> {
    bits(rows.iter().filter(|row| row.over == over).flat_map(|row| row.vector.iter().copied()))
}

fn sites(rows: &[TraitVector]) -> Vec<&str> {
    rows.iter().map(|row| &row.site[..]).collect()
}

/// Named as said, where the file does not say it.
const NAMED: Said<'_> = Said { name: Some("marker"), over: Some(Over::ResponseAvg), offset: None };

#[test]
fn tensors_of_torch_are_read_bit_for_bit() {
    for (word, over) in
        [("response_avg", Over::ResponseAvg), ("prompt_avg", Over::PromptAvg), ("prompt_last", Over::PromptLast)]
    {
        let rows = read(&file(&format!("marker_{word}_diff.pt")), Said::default()).unwrap();
        assert_eq!(
            sites(&rows),
            ["0", "1", "2", "3", "post-norm"],
            "the last row of the originals is behind the final norm"
        );
        assert!(rows.iter().enumerate().all(|(layer, row)| row.layer == layer as u32 && row.trait_name == "marker"));
        assert_eq!(of(&rows, over), bits(expected(word)));
    }
    // Other strides, and a beginning within a storage of other numbers.
    for name in ["marker_transposed.pt", "marker_offset.pt"] {
        let rows = read(&file(name), NAMED).unwrap();
        assert_eq!(of(&rows, Over::ResponseAvg), bits(expected("response_avg")), "{name}");
        let error = read(&file(name), Said::default()).unwrap_err().to_string();
        assert!(error.contains("--name NAME"), "{error}");
    }
}

#[test]
fn safetensors_and_gguf_are_read_bit_for_bit() {
    let rows = read(&file("marker.safetensors"), Said::default()).unwrap();
    for (word, over) in
        [("response_avg", Over::ResponseAvg), ("prompt_avg", Over::PromptAvg), ("prompt_last", Over::PromptLast)]
    {
        assert_eq!(of(&rows, over), bits(expected(word)));
    }
    assert_eq!(&sites(&rows)[..5], ["0", "1", "2", "3", "post-norm"]);
    assert!(rows.iter().all(|row| row.pairs == 12));
    let twice = read(&file("marker.safetensors"), NAMED).unwrap_err().to_string();
    assert!(twice.contains("two vectors of marker over response-avg at site 0"), "{twice}");

    // direction.1 is the output of block 1, which is site 2; counted as llama.cpp's generator does, it is site 1.
    let matrix = expected("response_avg");
    for (offset, numbers) in [(None, ["2", "3"]), (Some(0), ["1", "2"])] {
        let rows = read(&file("marker.gguf"), Said { offset, ..NAMED }).unwrap();
        assert_eq!(sites(&rows), numbers);
        assert_eq!(of(&rows, Over::ResponseAvg), bits(matrix[2 * WIDTH..4 * WIDTH].iter().copied()));
    }
}

/// A ZIP archive of these entries, by a method of packing: 0 leaves them as they are.
pub(crate) fn archive(entries: &[(&str, &[u8])], method: u16) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let name = format!("x/{name}");
        let place = file.len() as u32;
        let mut common = [0_u16, method, 0, 0].map(u16::to_le_bytes).concat();
        for number in [crc32fast::hash(bytes), bytes.len() as u32, bytes.len() as u32] {
            common.extend(number.to_le_bytes());
        }
        common.extend((name.len() as u16).to_le_bytes());
        file.extend([b"PK\x03\x04\x14\x00", &common[..], &[0; 2], name.as_bytes(), bytes].concat());
        directory.extend([b"PK\x01\x02\x14\x00\x14\x00", &common[..], &[0; 12]].concat());
        directory.extend([&place.to_le_bytes(), name.as_bytes()].concat());
    }
    let mut end = b"PK\x05\x06\x00\x00\x00\x00".to_vec();
    end.extend([entries.len() as u16; 2].map(u16::to_le_bytes).concat());
    end.extend([directory.len() as u32, file.len() as u32].map(u32::to_le_bytes).concat());
    [file, directory, end, vec![0; 2]].concat()
}

/// The pickle of a tensor [2, 3] with these strides and offset, of a storage of so many numbers.
pub(crate) fn pickle(storage: &str, count: u8, offset: u8, stride: [u8; 2]) -> Vec<u8> {
    let mut bytes = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x00((X\x07\x00\x00\x00storageq\x01c".to_vec();
    bytes.extend(storage.bytes());
    bytes.extend(b"\nq\x02X\x01\x00\x00\x000q\x03X\x03\x00\x00\x00cpuq\x04K");
    bytes.push(count);
    bytes.extend(b"tq\x05QK");
    bytes.push(offset);
    bytes.extend(b"K\x02K\x03\x86q\x06K");
    bytes.push(stride[0]);
    bytes.push(b'K');
    bytes.push(stride[1]);
    bytes.extend(b"\x86q\x07\x89ccollections\nOrderedDict\nq\x08)Rq\ttq\nRq\x0b.");
    bytes
}

#[test]
fn halves_and_strides_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("marker.pt");
    let numbers = [0.0_f32, 1.0, -2.5, 0.15625, 7.0, -0.5, 3.0];
    let halves = |to: fn(f32) -> [u8; 2]| numbers.iter().flat_map(|&number| to(number)).collect::<Vec<_>>();
    let of_all = [
        ("torch\nHalfStorage", halves(|number| f16::from_f32(number).to_le_bytes())),
        ("torch\nBFloat16Storage", halves(|number| bf16::from_f32(number).to_le_bytes())),
        ("torch\nFloatStorage", numbers.iter().flat_map(|number| number.to_le_bytes()).collect()),
    ];
    for (storage, data) in of_all {
        for (offset, stride) in [(1, [3, 1]), (0, [1, 2]), (6, [0, 0])] {
            let entries: [(&str, &[u8]); 2] = [("data.pkl", &pickle(storage, 7, offset, stride)), ("data/0", &data)];
            std::fs::write(&path, archive(&entries, 0)).unwrap();
            let rows = read(&path, NAMED).unwrap();
            let place = |i: usize, j: usize| offset as usize + i * stride[0] as usize + j * stride[1] as usize;
            let wanted = (0..2).flat_map(|i| (0..3).map(move |j| numbers[place(i, j)]));
            assert_eq!(of(&rows, Over::ResponseAvg), bits(wanted), "{storage} {offset} {stride:?}");
        }
    }
}

#[test]
fn what_is_no_file_of_vectors_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |name: &str, bytes: &[u8]| -> String {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = read(&path, NAMED).map(drop).unwrap_err();
        let Some(Error::Input(message)) = error.downcast_ref() else { panic!("{error:#}") };
        assert!(message.contains(name), "{message}");
        message.clone()
    };
    let data = [0_u8; 28];
    let float = "torch\nFloatStorage";
    let packed = |pickle: &[u8], data: &[u8]| archive(&[("data.pkl", pickle), ("data/0", data)], 0);
    let cases: [(Vec<u8>, &str); 13] = [
        (packed(b"\x80\x02cposix\nsystem\n(X\x02\x00\x00\x00lstR.", &data), "`posix.system`"),
        (packed(b"\x80\x02c__builtin__\neval\n.", &data), "`__builtin__.eval`"),
        (packed(&pickle("torch\nDoubleStorage", 7, 0, [3, 1]), &data), "`torch.DoubleStorage`"),
        (packed(b"\x80\x02}q\x00.", &data), "operation 0x7d"),
        (packed(b"\x80\x04.", &data), "protocol 4"),
        (packed(&pickle(float, 7, 2, [3, 1]), &data), "behind the end of its storage"),
        (packed(&pickle(float, 8, 0, [3, 1]), &data), "and it has 28 bytes"),
        (packed(b"\x80\x02K\x01.", &data), "not one bare tensor"),
        (archive(&[("data.pkl", &pickle(float, 7, 0, [3, 1])), ("code/model.py", b"x")], 0), "x/code/model.py"),
        (archive(&[("data.pkl", &pickle(float, 7, 0, [3, 1])), ("byteorder", b"big")], 0), "not little-endian"),
        (archive(&[("data.pkl", &pickle(float, 7, 0, [3, 1]))], 0), "data/0"),
        (archive(&[("data.pkl", &pickle(float, 7, 0, [3, 1])), ("data/0", &data)], 8), "compressed"),
        (b"\x80\x02K\x01.".to_vec(), "no archive"),
    ];
    for (bytes, what) in cases {
        let message = refused("evil.pt", &bytes);
        assert!(message.contains(what), "{what}: {message}");
    }
    // A hundred thousand tuples one in the other.
    let deep = refused("deep.pt", &packed(&[b"\x80\x02)".to_vec(), vec![0x85; 60_000], b".".to_vec()].concat(), &data));
    assert!(deep.contains("tuples within tuples"), "{deep}");
    let infinite = [f32::INFINITY.to_le_bytes(); 7].concat();
    let message = refused("inf.pt", &packed(&pickle(float, 7, 0, [3, 1]), &infinite));
    assert!(message.contains("inf in the vector of site 0"), "{message}");

    let gguf = std::fs::read(file("marker.gguf")).unwrap();
    let cut = refused("cut.gguf", &gguf[..gguf.len() - 40]);
    assert!(cut.contains("is cut off"), "{cut}");
    let other = String::from_utf8_lossy(&gguf).find("controlvector").unwrap();
    let mut model = gguf.clone();
    model[other..other + 5].copy_from_slice(b"llama");
    assert!(refused("model.gguf", &model).contains("that of vectors is controlvector"));
    assert!(refused("no.safetensors", &gguf).contains("no safetensors file"));
    let message = read(&file("marker.safetensors"), Said { offset: Some(1), ..NAMED }).unwrap_err().to_string();
    assert!(message.contains("--offset is of GGUF files alone"), "{message}");
    assert!(read(Path::new("nowhere.pt"), NAMED).unwrap_err().to_string().contains("nowhere.pt: cannot be read"));
}
