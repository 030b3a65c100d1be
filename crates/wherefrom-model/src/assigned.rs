//! The GPU that a scheduler has assigned to this process. Slurm, Ray and Kubernetes say it in CUDA's numbers, which Vulkan does not
//! heed: from the number or UUID to the card's place on the PCI bus, and from there to the adapter.

use std::process::Command;

use anyhow::Result;

use crate::device::Adapter;
use crate::error::bad_input;

/// Where a card is plugged in: domain, bus, device, function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bus([u32; 4]);

impl Bus {
    /// `0000:3b:00.0`, or with eight digits of domain as nvidia-smi writes it; none for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (domain, rest) = text.trim().split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        let mut parsed = [0; 4];
        for (number, digits) in parsed.iter_mut().zip([domain, bus, device, function]) {
            *number = u32::from_str_radix(digits, 16).ok()?;
        }
        Some(Self(parsed))
    }
}

impl std::fmt::Display for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [domain, bus, device, function] = self.0;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

/// A card as NVIDIA's driver lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Card {
    uuid: String,
    name: String,
    bus: Bus,
}

/// The cards of `nvidia-smi --query-gpu=uuid,name,pci.bus_id --format=csv,noheader`, in the order of their places on the bus.
fn cards(listed: &str) -> Vec<Card> {
    let mut cards: Vec<Card> = listed
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split(", ").collect();
            let [uuid, name, bus] = fields[..] else { return None };
            Some(Card { uuid: uuid.trim().into(), name: name.into(), bus: Bus::parse(bus)? })
        })
        .collect();
    cards.sort_by_key(|card| card.bus);
    cards
}

/// What the driver lists; nothing where it is not there.
pub(crate) fn listed() -> Vec<Card> {
    let command =
        Command::new("nvidia-smi").args(["--query-gpu=uuid,name,pci.bus_id", "--format=csv,noheader"]).output();
    command.map(|output| cards(&String::from_utf8_lossy(&output.stdout))).unwrap_or_default()
}

/// Where it is said which GPU a process may use, the nearest first.
const VARIABLES: [&str; 3] = ["CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS"];

/// What a scheduler has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// Nothing.
    Nothing,
    /// No GPU is for this process.
    NoGpu,
    /// This one, by the variable of that name.
    One { variable: &'static str, word: String },
}

/// What the variables say. An empty one gives no GPU, one that is not set says nothing; of several cards the first is meant.
pub(crate) fn said(variable: &dyn Fn(&str) -> Option<String>) -> Said {
    for name in VARIABLES {
        let Some(value) = variable(name) else { continue };
        let word = value.split(',').next().unwrap_or_default().trim();
        return match word {
            "" | "-1" | "NoDevFiles" | "void" => Said::NoGpu,
            word => Said::One { variable: name, word: word.into() },
        };
    }
    Said::Nothing
}

/// Which of `adapters` a scheduler means by `word`.
///
/// # Errors
/// [`crate::BadInput`], with what was seen, where no adapter is certain to be the one.
pub(crate) fn adapter(
    variable: &str,
    word: &str,
    in_bus_order: bool,
    cards: &[Card],
    adapters: &[Adapter],
) -> Result<usize> {
    let refused = |what: String| {
        let cards: Vec<_> = cards.iter().map(|card| format!("{} {} at {}", card.uuid, card.name, card.bus)).collect();
        let bus = |adapter: &Adapter| adapter.bus.map_or("an unknown place".into(), |bus| bus.to_string());
        let adapters: Vec<_> =
            adapters.iter().map(|adapter| format!("{} by {} at {}", adapter.name, adapter.api, bus(adapter))).collect();
        let list = |list: Vec<String>| if list.is_empty() { "nothing".into() } else { list.join("; ") };
        bad_input(format!(
            "{variable} assigns GPU `{word}` to this process, and {what}; name it yourself by --device gpu:N, or use --device cpu. \
             nvidia-smi lists: {}. This build reaches: {}",
            list(cards),
            list(adapters)
        ))
    };
    // CUDA heeds the variable itself: what it lists is what the process may use.
    if let Some(own) = adapters.iter().position(|adapter| adapter.api == "CUDA") {
        return Ok(own);
    }
    if word.starts_with("MIG-") {
        return Err(refused(
            "a part of a card (MIG) is not reached by a graphics interface: build with `--features cuda`".into(),
        ));
    }
    let card = match word.parse::<usize>() {
        // A control group shows the process its own card alone, whatever its number is among all.
        Ok(_) if cards.len() == 1 => &cards[0],
        Ok(number) => {
            let alike = cards.iter().all(|card| card.name == cards[0].name);
            if variable == "CUDA_VISIBLE_DEVICES" && !alike && !in_bus_order {
                return Err(refused(
                    "CUDA numbers unlike cards by their speed: set CUDA_DEVICE_ORDER=PCI_BUS_ID where the number is given".into(),
                ));
            }
            cards.get(number).ok_or_else(|| refused("no card has that number".into()))?
        }
        Err(_) => {
            let named: Vec<_> = cards.iter().filter(|card| card.uuid.starts_with(word)).collect();
            match named[..] {
                [card] => card,
                _ => return Err(refused(format!("{} cards have that name", named.len()))),
            }
        }
    };
    // Other interfaces name the first card of a model, whichever is meant.
    let there = |adapter: &Adapter| adapter.hardware && adapter.api == "Vulkan" && adapter.bus == Some(card.bus);
    match adapters.iter().position(there) {
        Some(found) => Ok(found),
        None => Err(refused(format!("none that this build reaches is known to be at {}", card.bus))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMI: &str = "GPU-aaaa1111-0, NVIDIA H100, 00000000:5D:00.0\nGPU-bbbb2222-0, NVIDIA H100, 00000000:3B:00.0\n\
                       GPU-bbcc3333-0, NVIDIA H100, 00000001:3B:00.0\n";

    fn adapters(places: &[Option<&str>]) -> Vec<Adapter> {
        let adapter = |place: &Option<&str>| Adapter {
            name: "NVIDIA H100".into(),
            hardware: place.is_some(),
            bus: place.and_then(Bus::parse),
            ..Adapter::of("Vulkan")
        };
        places.iter().map(adapter).collect()
    }

    fn chosen(variable: &str, word: &str, smi: &str, adapters: &[Adapter]) -> Result<usize, String> {
        adapter(variable, word, false, &cards(smi), adapters).map_err(|error| error.to_string())
    }

    #[test]
    fn places_are_numbers_however_they_are_written() {
        assert_eq!(Bus::parse("00000000:3B:00.0"), Bus::parse("0000:3b:00.0"));
        assert_eq!(Bus::parse("0000:3b:00.0").unwrap().to_string(), "0000:3b:00.0");
        assert_ne!(Bus::parse("0001:3b:00.0"), Bus::parse("0000:3b:00.0"));
        for text in ["", "3b:00.0", "0000:3b:00", "0000:zz:00.0"] {
            assert_eq!(Bus::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_empty_variable_is_no_gpu_and_none_is_nothing() {
        let of = |set: &'static [(&'static str, &'static str)]| {
            said(&move |name| set.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_string()))
        };
        assert_eq!(of(&[]), Said::Nothing);
        assert_eq!(of(&[("CUDA_VISIBLE_DEVICES", "")]), Said::NoGpu);
        assert_eq!(of(&[("CUDA_VISIBLE_DEVICES", "-1"), ("SLURM_JOB_GPUS", "1")]), Said::NoGpu);
        let one = |variable, word: &str| Said::One { variable, word: word.into() };
        assert_eq!(of(&[("CUDA_VISIBLE_DEVICES", "2,3"), ("SLURM_JOB_GPUS", "5")]), one("CUDA_VISIBLE_DEVICES", "2"));
        assert_eq!(of(&[("SLURM_JOB_GPUS", "5"), ("SLURM_STEP_GPUS", "6")]), one("SLURM_STEP_GPUS", "6"));
    }

    #[test]
    fn a_number_or_uuid_leads_to_the_adapter_at_the_same_place() {
        // Vulkan's order is another than the bus's, and the first is software.
        let table = adapters(&[None, Some("0001:3b:00.0"), Some("0000:5d:00.0"), Some("0000:3b:00.0")]);
        for (word, expected) in [("0", 3), ("1", 2), ("2", 1), ("GPU-aaaa", 2), ("GPU-bbcc3333-0", 1)] {
            assert_eq!(chosen("CUDA_VISIBLE_DEVICES", word, SMI, &table), Ok(expected), "{word}");
        }
        // Within a control group there is one, whatever Slurm calls it.
        assert_eq!(chosen("SLURM_JOB_GPUS", "7", &SMI[..45], &table), Ok(2));
    }

    #[test]
    fn where_no_adapter_is_certain_it_is_refused_with_what_was_seen() {
        let table = adapters(&[Some("0000:3b:00.0")]);
        let unknown = [Adapter { bus: None, ..table[0].clone() }];
        let direct = [Adapter { api: "Dx12", ..table[0].clone() }];
        let unlike = SMI.replacen("H100", "T4", 1);
        for (word, smi, table, fragment) in [
            ("3", SMI, &table[..], "no card has that number"),
            ("1", SMI, &table, "known to be at 0000:5d:00.0"),
            ("0", SMI, &unknown, "at an unknown place"),
            ("0", SMI, &direct, "known to be at 0000:3b:00.0"),
            ("GPU-bb", SMI, &table, "2 cards have that name"),
            ("MIG-1234", SMI, &table, "--features cuda"),
            ("0", &unlike, &table, "CUDA_DEVICE_ORDER=PCI_BUS_ID"),
            ("0", "", &table, "nvidia-smi lists: nothing"),
            ("0", SMI, &[], "reaches: nothing"),
        ] {
            let error = chosen("CUDA_VISIBLE_DEVICES", word, smi, table).unwrap_err();
            assert!(error.contains(fragment) && error.contains("--device cpu"), "{word}: {error}");
        }
        assert_eq!(adapter("CUDA_VISIBLE_DEVICES", "0", true, &cards(&unlike), &table).unwrap(), 0);
    }

    #[test]
    fn cuda_heeds_the_variable_itself() {
        let table = [Adapter { api: "CUDA", bus: None, ..adapters(&[Some("0000:3b:00.0")])[0].clone() }];
        assert_eq!(chosen("CUDA_VISIBLE_DEVICES", "MIG-1", "", &table), Ok(0));
    }
}
