//! The command line as its user has it: the built program in a folder of its own, files, output and exit codes.
#![cfg(unix)]

mod adapters;
mod asking;
mod bench;
mod check;
mod checkpoint;
mod corrupt;
mod ending;
mod export;
mod families;
mod foreign;
mod golden;
mod hub;
mod hub_server;
mod index;
mod init;
mod kept;
mod ladder;
mod outside;
mod overflow;
mod passes;
mod places;
mod portrait;
mod preferences;
mod quickstart;
mod refusals;
mod remote;
mod resume;
mod reuse;
mod shards;
mod shells;
mod store;
mod study;
mod terminal;
mod times;
mod verbs;
