/* The loads of bench/compute.py: freestanding RV64GC, M-mode, no operating system. LOAD selects one;
 * ROUNDS is the number of rounds. Powers off through the test device of the virt board. */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned char u8;

#define TEST_DEVICE ((volatile u32 *)0x100000)
#define HEAP ((u8 *)0x81000000UL)
#define MEGABYTE (1UL << 20)
#define NOINLINE __attribute__((noinline))

__asm__(".section .text.start\n.global _start\n_start:\n"
        "  li t0, 0x6000\n  csrs mstatus, t0\n  la sp, stack_end\n  call main\n"
        "  li t0, 0x100000\n  li t1, 0x5555\n  sw t1, 0(t0)\n1: j 1b\n");
u8 stack[65536] __attribute__((aligned(16)));
__asm__(".global stack_end\n.set stack_end, stack + 65536\n");
volatile u64 result;

void *memset(void *to, int value, u64 count) { u8 *p = to; while (count--) *p++ = (u8)value; return to; }
void *memcpy(void *to, const void *from, u64 count)
{
    u64 *t = to; const u64 *f = from;
    for (; count >= 8; count -= 8) *t++ = *f++;
    u8 *tb = (u8 *)t; const u8 *fb = (const u8 *)f;
    while (count--) *tb++ = *fb++;
    return to;
}
static u64 seed = 88172645463325252UL;
static inline u64 next(void) { seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17; return seed; }

static void integer(u64 rounds)
{
    u64 a = 1, b = 2, c = 3;
    for (u64 i = 0; i < rounds * 20000000UL; i++) {
        a += b ^ (c >> 3); b = (b << 5) - a; c = c * 5 + (a & b); if (c & 64) a ^= i;
    }
    result = a + b + c;
}
static void sieve(u64 rounds)
{
    u8 *flags = HEAP; u64 size = 4 * MEGABYTE, count = 0;
    while (rounds--) {
        memset(flags, 1, size);
        for (u64 i = 2; i * i < size; i++)
            if (flags[i]) for (u64 j = i * i; j < size; j += i) flags[j] = 0;
        for (u64 i = 2; i < size; i++) count += flags[i];
    }
    result = count;
}
static NOINLINE void sort(u32 *a, long left, long right)
{
    while (left < right) {
        u32 pivot = a[(left + right) / 2]; long i = left, j = right;
        while (i <= j) {
            while (a[i] < pivot) i++;
            while (a[j] > pivot) j--;
            if (i <= j) { u32 t = a[i]; a[i] = a[j]; a[j] = t; i++; j--; }
        }
        if (j - left < right - i) { sort(a, left, j); left = i; } else { sort(a, i, right); right = j; }
    }
}
static void quicksort(u64 rounds, u64 bytes)
{
    u32 *a = (u32 *)HEAP; u64 count = bytes / 4;
    while (rounds--) {
        for (u64 i = 0; i < count; i++) a[i] = (u32)next();
        sort(a, 0, (long)count - 1);
        result = a[count / 2];
    }
}
static void hash(u64 rounds, u64 bytes)
{
    u64 *table = (u64 *)HEAP, mask = bytes / 8 - 1, sum = 0;
    for (u64 i = 0; i < rounds * 4000000UL; i++) {
        u64 key = next(); u64 *p = &table[(key * 0x9E3779B97F4A7C15UL >> 20) & mask];
        sum += *p; *p = key;
    }
    result = sum;
}
static NOINLINE u64 fibonacci(u64 n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
static void calls(u64 rounds) { while (rounds--) result += fibonacci(32); }
static NOINLINE u64 f0(u64 x) { return x + 1; }
static NOINLINE u64 f1(u64 x) { return x ^ 5; }
static NOINLINE u64 f2(u64 x) { return x * 3; }
static NOINLINE u64 f3(u64 x) { return x - (x >> 3); }
static u64 (*volatile table[4])(u64) = {f0, f1, f2, f3};
static void indirect(u64 rounds)
{
    u64 x = 1;
    for (u64 i = 0; i < rounds * 10000000UL; i++) x = table[(x ^ i) & 3](x);
    result = x;
}
static void copies(u64 rounds)
{
    u8 *a = HEAP, *b = HEAP + MEGABYTE; u64 sum = 0;
    for (u64 i = 0; i < MEGABYTE; i++) a[i] = (u8)(i % 255 + 1);
    while (rounds--) {
        for (int i = 0; i < 40; i++) memcpy(b + i, a, 256 * 1024);
        a[256 * 1024] = 0;
        for (int i = 0; i < 10; i++) {
            u8 *p = a; while (*p) p++;
            sum += (u64)(p - a);
            for (u64 k = 0; k < 256 * 1024; k++) sum += a[k] == b[k];
        }
    }
    result = sum;
}
#define N 96
static double ma[N][N], mb[N][N], mc[N][N];
static void matrix(u64 rounds)
{
    for (int i = 0; i < N; i++) for (int j = 0; j < N; j++) { ma[i][j] = i * 0.5 + j; mb[i][j] = i - j * 0.25; }
    while (rounds--) {
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {
                double sum = 0;
                for (int k = 0; k < N; k++) sum += ma[i][k] * mb[k][j];
                mc[i][j] = sum;
            }
        ma[1][1] = mc[2][3] * 1e-9;
    }
    result = (u64)mc[5][7];
}
struct body { double x, y, z, vx, vy, vz, mass; };
static void nbody(u64 rounds)
{
    static struct body bodies[5];
    for (int i = 0; i < 5; i++)
        bodies[i] = (struct body){i * 1.7 + 0.3, i * -0.9 + 1, i * 0.4, 0.01 * i, 0.3 - 0.1 * i, 0.02, 1.0 / (i + 1)};
    for (u64 step = 0; step < rounds * 100000; step++) {
        for (int i = 0; i < 5; i++)
            for (int j = i + 1; j < 5; j++) {
                struct body *p = &bodies[i], *q = &bodies[j];
                double dx = p->x - q->x, dy = p->y - q->y, dz = p->z - q->z, d2 = dx * dx + dy * dy + dz * dz, d;
                __asm__("fsqrt.d %0, %1" : "=f"(d) : "f"(d2));
                double magnitude = 0.001 / (d2 * d);
                p->vx -= dx * q->mass * magnitude; p->vy -= dy * q->mass * magnitude; p->vz -= dz * q->mass * magnitude;
                q->vx += dx * p->mass * magnitude; q->vy += dy * p->mass * magnitude; q->vz += dz * p->mass * magnitude;
            }
        for (int i = 0; i < 5; i++) {
            struct body *p = &bodies[i]; p->x += 0.001 * p->vx; p->y += 0.001 * p->vy; p->z += 0.001 * p->vz;
        }
    }
    result = (u64)(bodies[0].x * 1e6);
}
int main(void)
{
#if LOAD == 0
    integer(ROUNDS);
#elif LOAD == 1
    sieve(ROUNDS);
#elif LOAD == 2
    quicksort(ROUNDS, 4 * MEGABYTE);
#elif LOAD == 3
    quicksort(ROUNDS, 64 * MEGABYTE);
#elif LOAD == 4
    hash(ROUNDS, 4 * MEGABYTE);
#elif LOAD == 5
    hash(ROUNDS, 64 * MEGABYTE);
#elif LOAD == 6
    calls(ROUNDS);
#elif LOAD == 7
    indirect(ROUNDS);
#elif LOAD == 8
    copies(ROUNDS);
#elif LOAD == 9
    matrix(ROUNDS);
#elif LOAD == 10
    nbody(ROUNDS);
#endif
    return 0;
}
