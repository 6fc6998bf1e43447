//! Log records on their way out: captured from the plugins, kept in bounded rings, read, acknowledged. It
//! knows no connection and no plugin's life.

pub mod capture;
pub mod outlets;
pub mod own;
pub mod rate;
pub mod ring;
pub mod splitter;
