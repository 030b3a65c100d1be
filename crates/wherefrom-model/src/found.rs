//! Finding and opening GPUs. A build without GPU features finds none.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::Result;
use burn::tensor::Device;

use crate::device::Adapter;
use crate::error::bad_input;

/// Whether this build can reach a GPU.
pub(crate) const SUPPORT: bool = cfg!(any(feature = "wgpu", feature = "cuda", feature = "rocm"));

/// An adapter, and how to open it.
pub(crate) struct Found {
    pub(crate) adapter: Adapter,
    open: Box<dyn Fn() -> Result<Opened> + Send + Sync>,
    opened: Mutex<Option<Opened>>,
}

/// A device that was started.
#[derive(Clone)]
pub(crate) struct Opened {
    pub(crate) device: Device,
    /// As [`Adapter::largest_tensor`], but what the device got rather than what the adapter offers.
    pub(crate) largest_tensor: Option<u64>,
}

impl Found {
    #[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
    fn new(adapter: Adapter, open: impl Fn() -> Result<Opened> + Send + Sync + 'static) -> Self {
        Self { adapter, open: Box::new(open), opened: Mutex::new(None) }
    }

    fn opened(&self) -> MutexGuard<'_, Option<Opened>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looked for once a process, without opening any.
pub(crate) fn list() -> &'static [Found] {
    static LIST: OnceLock<Vec<Found>> = OnceLock::new();
    LIST.get_or_init(|| {
        let mut list = Vec::new();
        compute::find(&mut list);
        graphics::find(&mut list);
        list
    })
}

pub(crate) fn get(index: usize) -> Result<&'static Found> {
    if !SUPPORT {
        return Err(bad_input(format!(
            "this build has no GPU support for --device gpu:{index}: build with `--features wgpu` \
             (or cuda, rocm, metal, vulkan), or use --device cpu"
        )));
    }
    list().get(index).ok_or_else(|| match list().len() {
        0 => {
            bad_input("no GPU was found, nor a software adapter: is a driver installed? `wherefrom devices` lists them")
        }
        n => bad_input(format!("there is no gpu:{index}: `wherefrom devices` lists {n}, from gpu:0")),
    })
}

/// The adapter that a device was opened on, and the bytes of its largest tensor; none for the CPU.
pub(crate) fn of(device: &Device) -> Option<(&'static Adapter, Option<u64>)> {
    if *device == Device::flex() {
        return None;
    }
    list().iter().find_map(|found| {
        let opened = found.opened();
        let opened = opened.as_ref().filter(|opened| opened.device == *device)?;
        Some((&found.adapter, opened.largest_tensor))
    })
}

/// The device, started on the first call.
pub(crate) fn open(index: usize) -> Result<Device> {
    let found = get(index)?;
    let mut opened = found.opened();
    if let Some(opened) = &*opened {
        return Ok(opened.device.clone());
    }
    let started = (found.open)()?;
    Ok(opened.insert(started).device.clone())
}

/// CUDA and ROCm: the devices their own drivers number.
#[cfg(any(feature = "cuda", feature = "rocm"))]
mod compute {
    use burn::tensor::{Device, DeviceType};

    use super::{Found, Opened};
    use crate::device::Adapter;

    pub(super) fn find(list: &mut Vec<Found>) {
        let kinds = [
            #[cfg(feature = "cuda")]
            ("CUDA", DeviceType::Cuda),
            #[cfg(feature = "rocm")]
            ("ROCm", DeviceType::Rocm),
        ];
        for (api, kind) in kinds {
            for device in Device::enumerate(kind).iter().cloned() {
                let name = device.identity().map_or_else(|| format!("{device:?}"), |identity| identity.name);
                let adapter = Adapter { name, ..Adapter::of(api) };
                list.push(Found::new(adapter, move || Ok(Opened { device: device.clone(), largest_tensor: None })));
            }
        }
    }
}

#[cfg(not(any(feature = "cuda", feature = "rocm")))]
mod compute {
    pub(super) fn find(_list: &mut Vec<super::Found>) {}
}

/// wgpu: the adapters of one graphics interface, the first that has hardware, so that no GPU is listed twice.
#[cfg(feature = "wgpu")]
mod graphics {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use burn::tensor::wgpu::{WgpuBackend, wgpu};
    use burn::tensor::{Device, DeviceKind};

    use super::{Found, Opened};
    use crate::assigned::Bus;
    use crate::device::Adapter;
    use crate::error::bad_input;

    const INTERFACES: [(&str, WgpuBackend, wgpu::Backends); 4] = [
        ("Vulkan", WgpuBackend::Vulkan, wgpu::Backends::VULKAN),
        ("Metal", WgpuBackend::Metal, wgpu::Backends::METAL),
        ("Dx12", WgpuBackend::Dx12, wgpu::Backends::DX12),
        ("Gl", WgpuBackend::Gl, wgpu::Backends::GL),
    ];

    /// An interface is asked only if none before it has hardware: drivers print what they miss.
    pub(super) fn find(list: &mut Vec<Found>) {
        let mut software = Vec::new();
        for (api, backend, backends) in INTERFACES {
            let found = adapters(api, backend, backends);
            if found.iter().any(|found| found.adapter.hardware) {
                return list.extend(found);
            }
            if software.is_empty() {
                software = found;
            }
        }
        list.extend(software);
    }

    fn adapters(api: &'static str, backend: WgpuBackend, backends: wgpu::Backends) -> Vec<Found> {
        let mut description = wgpu::InstanceDescriptor::new_without_display_handle();
        description.backends = backends;
        let instance = wgpu::Instance::new(description);
        let mut numbers = [0; 3];
        let mut number = |kind: usize| {
            numbers[kind] += 1;
            numbers[kind] - 1
        };
        let found = ready(instance.enumerate_adapters(backends)).into_iter().flatten().map(|adapter| {
            let (about, limits) = (adapter.get_info(), adapter.limits());
            // burn numbers the adapters of each kind from 0, and has one software adapter.
            let kind = match about.device_type {
                wgpu::DeviceType::DiscreteGpu => Some(DeviceKind::DiscreteGpu(number(0))),
                wgpu::DeviceType::IntegratedGpu => Some(DeviceKind::IntegratedGpu(number(1))),
                wgpu::DeviceType::VirtualGpu => Some(DeviceKind::VirtualGpu(number(2))),
                wgpu::DeviceType::Cpu => Some(DeviceKind::Cpu),
                wgpu::DeviceType::Other => None,
            };
            let hardware = about.device_type != wgpu::DeviceType::Cpu;
            let adapter = Adapter {
                name: about.name.clone(),
                api,
                hardware,
                driver: format!("{} {}", about.driver, about.driver_info).trim().into(),
                features: adapter.features().iter_names().map(|(name, _)| name.into()).collect(),
                memory: if hardware { memory(&adapter) } else { wherefrom_linalg::memory::total_bytes() },
                largest_tensor: Some(largest(&limits)),
                bus: Bus::parse(&about.device_pci_bus_id),
            };
            Found::new(adapter, move || {
                let name = &about.name;
                let Some(kind) = kind.clone() else {
                    return Err(bad_input(format!(
                        "{name} does not say what kind of adapter it is, and burn cannot address it by its number"
                    )));
                };
                let started = Device::wgpu_options().device_kind(kind).graphics_api(backend).init_with_setup();
                let (device, setup) = started.map_err(|error| bad_input(format!("{name} does not start: {error}")))?;
                Ok(Opened { device, largest_tensor: Some(largest(&setup.device.limits())) })
            })
        });
        found.collect()
    }

    /// Bytes of the largest heap on the card itself. wgpu does not say; its Vulkan part hands out what the driver says.
    #[cfg(all(unix, not(target_vendor = "apple")))]
    #[allow(unsafe_code)]
    fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
        /// VK_MEMORY_HEAP_DEVICE_LOCAL_BIT.
        const ON_THE_CARD: u32 = 1;
        // SAFETY: the adapter is only asked, and outlives what it lends.
        let heaps = unsafe {
            let vulkan = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
            let instance = vulkan.shared_instance().raw_instance();
            instance.get_physical_device_memory_properties(vulkan.raw_physical_device())
        };
        let heaps = heaps.memory_heaps.iter().take(heaps.memory_heap_count as usize);
        heaps.filter(|heap| heap.flags.as_raw() & ON_THE_CARD != 0).map(|heap| heap.size).max()
    }

    #[cfg(not(all(unix, not(target_vendor = "apple"))))]
    fn memory(_adapter: &wgpu::Adapter) -> Option<u64> {
        None
    }

    fn largest(limits: &wgpu::Limits) -> u64 {
        limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)
    }

    /// wgpu's futures are ready at once, but for a browser.
    fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }
}

#[cfg(not(feature = "wgpu"))]
mod graphics {
    pub(super) fn find(_list: &mut Vec<super::Found>) {}
}
