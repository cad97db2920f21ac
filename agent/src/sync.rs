//! Locking between threads.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also if a thread has panicked that held it: what such locks protect here is whole at
/// every step.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
