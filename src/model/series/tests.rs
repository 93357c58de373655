//! Pages of several kinds of node, and what is true of all pages.

mod history;
mod laws;
mod pages;
mod parse;
mod scene;
