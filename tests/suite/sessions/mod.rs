//! The application's session map is right: seats are taken, replaced and given back.

mod concurrency;
mod ends;
mod lifetime;
mod maps;
mod odd;
mod panics;
mod reconnects;
mod reentry;
mod seats;
mod seeded;
mod slow_maps;
