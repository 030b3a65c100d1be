//! A tokenizer.json, and what the files beside it say of its tokens and templates, as `transformers` reads a folder: texts to
//! tokens, and conversations to texts.
//!
//! reads   tokenizer.json, tokenizer_config.json, special_tokens_map.json, added_tokens.json, chat_template.jinja,
//!         additional_chat_templates/*.jinja
//! writes  nothing

mod beside;
mod chat;
mod conversation;
mod encoder;
mod file;
pub mod json;
pub mod ordered;
mod tokenizer;

pub use beside::{Beside, conversation_files, files};
pub use chat::{Chat, Date, Rendered};
pub use conversation::{Conversation, role, turn};
pub use encoder::{Encoder, Tokens, encode_with};
pub use file::refuse;
pub use tokenizer::{open, open_beside, size};

/// The file of a vocabulary.
pub const TOKENIZER: &str = "tokenizer.json";
/// What a tokenizer's class is made with.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Of older folders: the names of special tokens.
pub const SPECIAL_TOKENS: &str = "special_tokens_map.json";
/// Of older folders: tokens that came later, with their ids.
pub const ADDED_TOKENS: &str = "added_tokens.json";
/// The template of conversations.
pub const TEMPLATE: &str = "chat_template.jinja";
/// Templates of other names.
pub const TEMPLATES: &str = "additional_chat_templates";
