//! What becomes of memory that is freed.

/// Keeps up to 256 MiB of freed memory for the next arrays, in place of giving it back at once: a run makes and drops arrays of some megabytes all the
/// time, and each page that comes back has to be mapped and cleared again. Arrays of 32 MiB and more go back.
///
/// Call it first of all, while there is one thread. Does nothing but with glibc's allocator on Linux.
pub fn keep_freed_memory() {
    set([32, 256, 32]);
}

/// Takes that back: arrays of a mebibyte and more go at once, where a budget counts what is there. What was freed before may stay.
///
/// Does nothing but with glibc's allocator on Linux.
pub fn give_freed_memory_back() {
    set([1, 4, 1]);
}

/// MiB from which arrays have pages of their own, that the heap's end may have free before it is given back, and that it grows by.
#[cfg_attr(not(all(target_os = "linux", target_env = "gnu")), allow(unused_variables))]
fn set(mebibytes: [i32; 3]) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let names = [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD, libc::M_TOP_PAD];
        for (name, mebibytes) in names.into_iter().zip(mebibytes) {
            // SAFETY: sets a number of the allocator, which any time allows; other threads would only race for it.
            unsafe { libc::mallopt(name, mebibytes << 20) };
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_is_allocated_as_before() {
        for set in [super::keep_freed_memory, super::give_freed_memory_back] {
            set();
            for megabytes in [1, 64, 2] {
                let bytes = vec![1_u8; megabytes << 20];
                assert_eq!(bytes.iter().map(|&byte| usize::from(byte)).sum::<usize>(), megabytes << 20);
            }
        }
    }
}
