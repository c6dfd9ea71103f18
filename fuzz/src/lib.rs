//! What is checked for any bytes at all. The fuzz targets call it, and so does `tests/fuzz_corpus.rs` with the corpus.

pub mod api;
pub mod dispatcher;
pub mod parser;
pub mod well_formed;
