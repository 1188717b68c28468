//! Prints the public API that the given file of rustdoc's JSON describes.

use std::{env, error::Error};

use public_api::Builder;

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args_os()
        .nth(1)
        .ok_or("no path of a file of rustdoc's JSON")?;
    // Every type has the blanket implementations. Auto traits and derived traits stay in the
    // listing, since the loss of `Send` or `Clone` breaks users.
    let api = Builder::from_rustdoc_json(path)
        .omit_blanket_impls(true)
        .build()?;
    print!("{api}");
    Ok(())
}
