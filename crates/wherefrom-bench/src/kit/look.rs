//! What of a GPU can be reached from here, and what is missing where none can: the parts of a Vulkan driver, by their files.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use wherefrom_model::{adapters, choose_adapter, precisions};

/// An adapter as `report.json` has it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) interface: String,
    pub(crate) hardware: bool,
    pub(crate) driver: String,
    /// By the names of wgpu.
    pub(crate) features: Vec<String>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) largest_tensor_bytes: Option<u64>,
    pub(crate) bus: Option<String>,
    /// In which models run on it; or why it does not start.
    pub(crate) precisions: Vec<String>,
    pub(crate) refused: Option<String>,
}

/// The adapters, and which of them is to be measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Listed {
    pub(super) adapters: Vec<Seen>,
    /// The one that a scheduler has assigned, else the first of hardware, else the first.
    pub(super) chosen: Option<usize>,
    /// Why it is not certain which one was assigned.
    pub(super) uncertain: Option<String>,
}

impl Listed {
    pub(super) fn has_hardware(&self) -> bool {
        self.adapters.iter().any(|seen| seen.hardware)
    }

    /// Of this build; each is started, to see what it computes in.
    pub(super) fn here() -> Self {
        let (chosen, uncertain) = match choose_adapter("auto") {
            Ok(chosen) => (chosen.map(|(index, _)| index), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let adapters = list();
        let first = || adapters.iter().position(|seen| seen.hardware).or((!adapters.is_empty()).then_some(0));
        Self { chosen: chosen.or_else(first), adapters, uncertain }
    }
}

fn list() -> Vec<Seen> {
    let seen = adapters().into_iter().enumerate().map(|(index, adapter)| {
        let (precisions, refused) = match precisions(Some(index)) {
            Ok(precisions) => (precisions.iter().map(|precision| precision.name().to_string()).collect(), None),
            Err(error) => (Vec::new(), Some(format!("{error:#}"))),
        };
        Seen {
            name: adapter.name,
            interface: adapter.api.into(),
            hardware: adapter.hardware,
            driver: adapter.driver,
            features: adapter.features,
            memory_bytes: adapter.memory,
            largest_tensor_bytes: adapter.largest_tensor,
            bus: adapter.bus.map(|bus| bus.to_string()),
            precisions,
            refused,
        }
    });
    seen.collect()
}

/// What of a driver lies on this machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Parts {
    /// The Vulkan loader, libvulkan.so.1.
    pub(crate) loader: Option<PathBuf>,
    /// The files by which drivers make themselves known to it.
    pub(crate) icd_files: Vec<PathBuf>,
    /// NVIDIA's driver as Vulkan loads it: the library with windows, and the one without.
    pub(crate) nvidia_glx: Option<PathBuf>,
    pub(crate) nvidia_egl: Option<PathBuf>,
    /// Device files: /dev/nvidia0 and so on, /dev/dri/renderD128 and so on.
    pub(crate) nvidia_devices: Vec<PathBuf>,
    pub(crate) render_devices: Vec<PathBuf>,
    /// Of the variable NVIDIA_DRIVER_CAPABILITIES.
    pub(crate) capabilities: Option<String>,
}

impl Parts {
    /// Of this machine.
    pub(super) fn here() -> Self {
        let variable = |name: &str| env::var_os(name).unwrap_or_default();
        let mut libraries: Vec<PathBuf> = env::split_paths(&variable("LD_LIBRARY_PATH")).collect();
        libraries.extend(
            [
                "/usr/lib/x86_64-linux-gnu",
                "/usr/lib64",
                "/usr/lib",
                "/lib64",
                "/usr/local/lib",
                "/usr/local/nvidia/lib64",
            ]
            .map(PathBuf::from),
        );
        let library = |name: &str| libraries.iter().map(|folder| folder.join(name)).find(|path| path.exists());
        let named = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].map(variable).into_iter().find(|paths| !paths.is_empty());
        let icd_files = match named {
            Some(paths) => env::split_paths(&paths).filter(|path| path.exists()).collect(),
            None => ["/etc", "/usr/share", "/usr/local/share"]
                .iter()
                .flat_map(|folder| files(&Path::new(folder).join("vulkan/icd.d"), ""))
                .collect(),
        };
        Self {
            loader: library("libvulkan.so.1"),
            icd_files,
            nvidia_glx: library("libGLX_nvidia.so.0"),
            nvidia_egl: library("libEGL_nvidia.so.0"),
            nvidia_devices: files(Path::new("/dev"), "nvidia")
                .into_iter()
                .filter(|path| path.to_string_lossy().ends_with(|last: char| last.is_ascii_digit()))
                .collect(),
            render_devices: files(Path::new("/dev/dri"), "renderD"),
            capabilities: env::var("NVIDIA_DRIVER_CAPABILITIES").ok(),
        }
    }

    /// ICD files that NVIDIA's driver could be tried by where its own does not work or is missing, to be written by the caller.
    pub(super) fn others(&self) -> Vec<(&'static str, String)> {
        let libraries = [("nvidia_glx.json", &self.nvidia_glx), ("nvidia_egl.json", &self.nvidia_egl)];
        let file = |(name, library): (&'static str, &Option<PathBuf>)| {
            let icd = serde_json::json!({ "library_path": library.as_ref()?, "api_version": "1.3.0" });
            Some((name, serde_json::json!({ "file_format_version": "1.0.0", "ICD": icd }).to_string()))
        };
        libraries.into_iter().filter_map(file).collect()
    }

    /// What keeps a card from being reached, where no hardware adapter was found; `smi` says whether nvidia-smi lists a card.
    pub(super) fn missing(&self, smi: bool) -> Vec<String> {
        let mut missing = Vec::new();
        if self.loader.is_none() {
            missing.push(
                "the Vulkan loader libvulkan.so.1, which the kit has in its folder lib: start it by run.sh".into(),
            );
        }
        let card = smi || !self.nvidia_devices.is_empty();
        if card && self.nvidia_glx.is_none() && self.nvidia_egl.is_none() {
            let set = self.capabilities.as_deref().unwrap_or("unset");
            missing.push(format!(
                "there is an NVIDIA card, and neither libGLX_nvidia.so.0 nor libEGL_nvidia.so.0: in a container, start it \
                 with NVIDIA_DRIVER_CAPABILITIES=all, or compute,utility,graphics (now: {set}); elsewhere, install the \
                 driver's graphics libraries (Debian, Ubuntu: libnvidia-gl-VERSION)"
            ));
        } else if card && !self.icd_files.iter().any(|file| file.to_string_lossy().contains("nvidia")) {
            missing.push(
                "there is an NVIDIA card and its driver's library, and no nvidia_icd.json in /etc/vulkan/icd.d or \
                 /usr/share/vulkan/icd.d; ICD files of the kit's own were tried, and did not work"
                    .into(),
            );
        } else if card {
            missing.push(
                "there is an NVIDIA card, its driver's library and its ICD file, and Vulkan lists no card: see what \
                 VK_LOADER_DEBUG=all makes the loader say; libGLX_nvidia.so.0 asks for libX11.so.6 and libXext.so.6 \
                 (Debian, Ubuntu: libx11-6, libxext6)"
                    .into(),
            );
        }
        if !card && self.icd_files.is_empty() {
            missing.push(
                "a driver's ICD file (*.json in /etc/vulkan/icd.d or /usr/share/vulkan/icd.d): AMD and Intel have theirs in \
                 Mesa (Debian, Ubuntu: mesa-vulkan-drivers), NVIDIA in its driver"
                    .into(),
            );
        }
        if !card && self.render_devices.is_empty() {
            missing.push(
                "a card: there is no /dev/nvidia0 and no /dev/dri/renderD128 (docker run --gpus all, or --device /dev/dri)"
                    .into(),
            );
        }
        missing
    }
}

/// Files of a folder whose names begin so, in order.
fn files(folder: &Path, begin: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(begin));
    let mut files: Vec<_> = named.map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// The fields that nvidia-smi is asked for.
const FIELDS: &str = "name,uuid,pci.bus_id,driver_version,vbios_version,memory.total,memory.used,compute_cap,\
                      clocks.max.sm,clocks.max.memory,power.limit,temperature.gpu,pstate,ecc.mode.current,mig.mode.current";

/// What nvidia-smi says of each card; none where it is not there or fails.
pub(super) fn nvidia_smi() -> Option<Vec<BTreeMap<String, String>>> {
    let query = format!("--query-gpu={FIELDS}");
    let output = Command::new("nvidia-smi").args([&query, "--format=csv,noheader"]).output().ok()?;
    let said = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    Some(cards(&said))
}

fn cards(said: &str) -> Vec<BTreeMap<String, String>> {
    let card = |line: &str| {
        let values = line.split(", ").map(|value| value.trim().to_string());
        FIELDS.split(',').map(|field| field.trim().to_string()).zip(values).collect()
    };
    said.lines().map(card).collect()
}

/// Bytes of a card's memory, as nvidia-smi says it: `81559 MiB`.
pub(super) fn memory(card: &BTreeMap<String, String>) -> Option<u64> {
    let mebibytes: u64 = card.get("memory.total")?.strip_suffix(" MiB")?.parse().ok()?;
    Some(mebibytes << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nvidia() -> Parts {
        Parts {
            loader: Some("/kit/lib/libvulkan.so.1".into()),
            nvidia_devices: vec!["/dev/nvidia0".into()],
            ..Parts::default()
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let said = |parts: &Parts, smi| parts.missing(smi).join("\n");
        let bare = Parts { loader: nvidia().loader, ..Parts::default() };
        assert!(said(&bare, false).contains("ICD file") && said(&bare, false).contains("/dev/nvidia0"));
        // Compute alone, as containers have it.
        let compute = Parts { capabilities: Some("compute,utility".into()), ..nvidia() };
        assert!(
            said(&compute, true).contains("NVIDIA_DRIVER_CAPABILITIES=all")
                && said(&compute, true).contains("now: compute,utility")
        );
        let library = Parts { nvidia_egl: Some("/usr/lib64/libEGL_nvidia.so.0".into()), ..nvidia() };
        assert!(said(&library, true).contains("no nvidia_icd.json"));
        let whole = Parts { icd_files: vec!["/usr/share/vulkan/icd.d/nvidia_icd.json".into()], ..library };
        assert!(said(&whole, true).contains("libX11.so.6"));
        assert!(said(&Parts::default(), false).contains("libvulkan.so.1"));
    }

    #[test]
    fn a_driver_without_its_icd_file_is_given_one() {
        let library = Parts { nvidia_egl: Some("/usr/lib64/libEGL_nvidia.so.0".into()), ..nvidia() };
        let [(name, text)] = &library.others()[..] else { panic!("one library, one file") };
        assert_eq!(*name, "nvidia_egl.json");
        let json: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(json["ICD"]["library_path"], "/usr/lib64/libEGL_nvidia.so.0");
        assert!(nvidia().others().is_empty());
    }

    #[test]
    fn nvidia_smi_is_read_by_its_fields() {
        let line = "NVIDIA H100 80GB HBM3, GPU-1, 00000000:5D:00.0, 550.54, 96.00, 81559 MiB, 1 MiB, 9.0, 1980 MHz, \
                    2619 MHz, 700.00 W, 33, P0, Enabled, Disabled\n";
        let cards = cards(line);
        assert_eq!(cards[0]["name"], "NVIDIA H100 80GB HBM3");
        assert_eq!(cards[0]["mig.mode.current"], "Disabled");
        assert_eq!(memory(&cards[0]), Some(81_559 << 20));
    }
}
