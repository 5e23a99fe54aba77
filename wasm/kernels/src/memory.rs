//! Memory and handles: every allocation may fail with a value, every number from outside is checked here.

use core::marker::PhantomData;
use std::alloc::{alloc, alloc_zeroed, Layout};

/// Why a call was refused. The value crosses the border as a negative number (see [`Error::code`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The memory could not grow.
    Memory,
    /// A handle that was never given out or has been freed, or one buffer given twice in a call.
    Handle,
    /// A size, length or index that does not fit the shape.
    Shape,
    /// A buffer shorter than the call needs.
    Buffer,
    /// A number that rows of this kind can't hold.
    Value,
}

pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    pub fn code(self) -> i32 {
        match self {
            Error::Memory => -1,
            Error::Handle => -2,
            Error::Shape => -3,
            Error::Buffer => -4,
            Error::Value => -5,
        }
    }
}

/// A line of the processor's cache: the unit of every buffer, so that no vector of one lies across two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

/// One copy for all arrays: there are many. Not `zeroed`, they hold whatever was left at their place.
#[inline(never)]
fn lines(bytes: usize, zeroed: bool) -> Result<Vec<Line>> {
    let count = bytes.div_ceil(64);
    if count == 0 {
        return Ok(Vec::new());
    }
    let layout = Layout::array::<Line>(count).map_err(|_| Error::Memory)?;
    // SAFETY: the layout is not empty.
    let block = unsafe {
        if zeroed {
            alloc_zeroed(layout)
        } else {
            alloc(layout)
        }
    };
    if block.is_null() {
        return Err(Error::Memory);
    }
    // What was left is some bytes, not nothing in particular.
    let block = std::hint::black_box(block) as *mut Line;
    // SAFETY: `count` lines of the global allocator, any bits of which are numbers.
    Ok(unsafe { Vec::from_raw_parts(block, count, count) })
}

/// What a buffer may be read as: plain numbers for which every bit pattern is a value.
pub trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for f64 {}
impl Plain for i32 {}
impl Plain for u32 {}
impl Plain for i16 {}
impl Plain for i8 {}
impl Plain for u8 {}

/// A 64-byte aligned array whose allocation can fail.
pub struct Array<T: Plain> {
    lines: Vec<Line>,
    length: usize,
    kind: PhantomData<T>,
}

impl<T: Plain> Array<T> {
    pub fn zeros(length: usize) -> Result<Self> {
        let bytes = length.checked_mul(core::mem::size_of::<T>()).ok_or(Error::Memory)?;
        Ok(Array { lines: lines(bytes, true)?, length, kind: PhantomData })
    }

    /// An array to be written before it is read.
    pub fn room(length: usize) -> Result<Self> {
        let bytes = length.checked_mul(core::mem::size_of::<T>()).ok_or(Error::Memory)?;
        Ok(Array { lines: lines(bytes, false)?, length, kind: PhantomData })
    }

    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `lines` holds at least `length` values of a plain type no more aligned than 64 bytes.
        unsafe { core::slice::from_raw_parts(self.lines.as_ptr() as *const T, self.length) }
    }

    pub fn as_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.lines.as_mut_ptr() as *mut T, self.length) }
    }

    pub fn len(&self) -> usize {
        self.length
    }

    pub fn address(&self) -> usize {
        self.lines.as_ptr() as usize
    }
}

/// A buffer the other side writes inputs to and reads outputs from. Untyped: each call says what it reads.
pub type Buffer = Array<u8>;

impl Array<u8> {
    /// The first `length` values, read as `T`.
    pub fn view<T: Plain>(&self, length: usize) -> Result<&[T]> {
        self.check::<T>(length)?;
        // SAFETY: the check; plain type; 64-byte alignment.
        Ok(unsafe { core::slice::from_raw_parts(self.lines.as_ptr() as *const T, length) })
    }

    /// The first `length` values, to be written as `T`.
    pub fn view_mut<T: Plain>(&mut self, length: usize) -> Result<&mut [T]> {
        self.check::<T>(length)?;
        // SAFETY: as above, and `self` is borrowed mutably.
        Ok(unsafe { core::slice::from_raw_parts_mut(self.lines.as_mut_ptr() as *mut T, length) })
    }

    fn check<T: Plain>(&self, length: usize) -> Result<()> {
        let bytes = length.checked_mul(core::mem::size_of::<T>()).ok_or(Error::Buffer)?;
        if bytes > self.length {
            return Err(Error::Buffer);
        }
        Ok(())
    }
}

/// Things with handles. A handle is `generation << 16 | slot`, positive; a freed one is refused for 32767 reuses.
pub struct Slab<T> {
    slots: Vec<(i32, Option<T>)>,
    free: Vec<usize>,
}

const SLOTS: usize = 1 << 16;

impl<T> Slab<T> {
    pub const fn new() -> Self {
        Slab { slots: Vec::new(), free: Vec::new() }
    }

    pub fn insert(&mut self, item: T) -> Result<i32> {
        if let Some(slot) = self.free.pop() {
            let (generation, place) = &mut self.slots[slot];
            *place = Some(item);
            return Ok(*generation << 16 | slot as i32);
        }
        let slot = self.slots.len();
        if slot == SLOTS {
            return Err(Error::Memory);
        }
        self.slots.try_reserve(1).map_err(|_| Error::Memory)?;
        // So that `remove` can't fail.
        self.free.try_reserve(slot + 1).map_err(|_| Error::Memory)?;
        self.slots.push((1, Some(item)));
        Ok(1 << 16 | slot as i32)
    }

    fn place(&mut self, handle: i32) -> Result<&mut Option<T>> {
        let slot = (handle & 0xffff) as usize;
        match self.slots.get_mut(slot) {
            Some((generation, place)) if handle > 0 && *generation == handle >> 16 => Ok(place),
            _ => Err(Error::Handle),
        }
    }

    pub fn get(&mut self, handle: i32) -> Result<&mut T> {
        self.place(handle)?.as_mut().ok_or(Error::Handle)
    }

    pub fn remove(&mut self, handle: i32) -> Result<T> {
        let item = self.place(handle)?.take().ok_or(Error::Handle)?;
        let slot = (handle & 0xffff) as usize;
        self.slots[slot].0 = self.slots[slot].0 % 0x7fff + 1;
        self.free.push(slot);
        Ok(item)
    }

    /// Takes the items out for the time of `body`. A handle given twice is refused; −1 lends nothing.
    pub fn lend<const N: usize, R>(
        &mut self,
        handles: [i32; N],
        body: impl FnOnce([Option<&mut T>; N]) -> Result<R>,
    ) -> Result<R> {
        let mut taken: [Option<T>; N] = [const { None }; N];
        let result = match self.take(&handles, &mut taken) {
            Ok(()) => body(taken.each_mut().map(Option::as_mut)),
            Err(error) => Err(error),
        };
        self.give_back(&handles, &mut taken);
        result
    }

    /// Where it fails, some are taken.
    #[inline(never)]
    fn take(&mut self, handles: &[i32], taken: &mut [Option<T>]) -> Result<()> {
        for (place, &handle) in taken.iter_mut().zip(handles) {
            if handle != -1 {
                *place = Some(self.place(handle)?.take().ok_or(Error::Handle)?);
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn give_back(&mut self, handles: &[i32], taken: &mut [Option<T>]) {
        for (item, &handle) in taken.iter_mut().zip(handles) {
            if let (Some(item), Ok(place)) = (item.take(), self.place(handle)) {
                *place = Some(item);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slab_refuses_freed_forged_and_doubled_handles() {
        let mut slab = Slab::new();
        let a = slab.insert(1).unwrap();
        let b = slab.insert(2).unwrap();
        assert_eq!(slab.remove(a), Ok(1));
        assert_eq!(slab.remove(a), Err(Error::Handle));
        let c = slab.insert(3).unwrap();
        assert_eq!(c & 0xffff, a & 0xffff);
        for bad in [a, 0, -1, -2, i32::MIN, i32::MAX, 1 << 16 | 99] {
            assert!(slab.get(bad).is_err(), "{bad}");
        }
        assert_eq!(slab.lend([b, c], |[x, y]| Ok((*x.unwrap(), *y.unwrap()))), Ok((2, 3)));
        assert_eq!(slab.lend([b, b], |_| Ok(())), Err(Error::Handle));
        assert_eq!(slab.lend([b, -1], |[x, y]| Ok((*x.unwrap(), y.is_none()))), Ok((2, true)));
        assert_eq!(slab.get(b), Ok(&mut 2));
    }

    #[test]
    fn buffers_are_no_longer_than_they_are() {
        let mut buffer = Buffer::zeros(10).unwrap();
        assert!(buffer.view::<f32>(2).is_ok());
        assert!(buffer.view::<f32>(3).is_err());
        assert!(buffer.view_mut::<u8>(10).is_ok());
        assert!(buffer.view::<f32>(usize::MAX).is_err());
        assert!(Array::<f32>::zeros(usize::MAX / 2).is_err());
        assert!(Array::<f32>::room(usize::MAX / 2).is_err());
        assert!(Array::<f32>::room(0).unwrap().as_slice().is_empty());
    }
}
