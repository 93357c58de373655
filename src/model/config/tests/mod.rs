//! What configuration may say, which one applies, and that nothing breaks the reader.

mod parse;
mod precedence;
mod total;
