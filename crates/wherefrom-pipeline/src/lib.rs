//! Pipelines: TOML to plan, plan to artifacts.
//!
//! reads   pipeline files, artifacts
//! writes  artifacts, a record of each run in the store, and beside it runs/PIPELINE/lock.toml
//!
//! [`Plan::read`] finds every problem before anything is computed; [`Plan::run`] makes what is missing.

mod advice;
mod belong;
mod context;
mod cost;
mod device;
mod external;
mod file;
mod files;
mod garbage;
mod hub;
mod import;
mod init;
mod paths;
mod plan;
mod probe;
mod problems;
mod push;
mod rates;
mod reader;
mod records;
mod run;
mod schema;
mod shard;
mod single;
mod size;
mod stage;
mod step;
mod suggest;

pub use cost::{Estimate, parse_machine, this_machine};
pub use device::device;
pub use garbage::{Garbage, Garbages, Reason, garbage, remove_garbage};
pub use hub::{adapter_folder, model_folder};
pub use import::Import;
pub use init::{Init, init};
pub use paths::{Why, pipeline_name, pipeline_path, remote, store};
pub use plan::{Plan, quoted};
pub use push::Pushed;
pub use rates::{Basis, Time};
pub use records::{Outcome, Progress, Record, Recorded, RecordedStep, distinct, records};
pub use run::Done;
pub use schema::schema;
pub use single::{Single, run_stage};
pub use stage::Stage;
pub use step::{Source, Step};
pub use wherefrom_model::{Adapter, BadInput, Precision, adapters, has_gpu_support, precisions};
pub use wherefrom_stage::{Cost, Machine};
