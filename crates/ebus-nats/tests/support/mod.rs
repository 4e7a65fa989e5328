//! What the test binaries of this crate share.
#![allow(dead_code)] // each of them uses a part of it

pub(crate) mod drive;
pub(crate) mod team;
