//! Time: the driver's visits, and the deadline that triggers them.

mod deadline;
mod tick;
