// Runs the CUDA C++ of the scan on a CPU: each thread a ucontext fiber, barriers and shuffles by turns.
#include <cstdio>
#define SSAMBA_EMULATE
#include <algorithm>
using std::min; using std::max;
#include <ucontext.h>
#include <cmath>
#include <cstring>
#include <cstdlib>
#include <vector>
#include <cstdint>
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __align__(x) __attribute__((aligned(x)))
#define __launch_bounds__(...)
struct float2{float x,y;}; struct alignas(16) float4{float x,y,z,w;};
inline float2 make_float2(float a,float b){return {a,b};}
inline float4 make_float4(float a,float b,float c,float d){return {a,b,c,d};}
struct uint2{unsigned x,y;}; struct alignas(16) uint4{unsigned x,y,z,w;};
inline uint4 make_uint4(unsigned x,unsigned y,unsigned z,unsigned w){return {x,y,z,w};}
inline float __uint_as_float(unsigned u){float f; memcpy(&f,&u,4); return f;}
struct I3{int x,y,z;}; static I3 threadIdx, blockIdx, blockDim_;
// 1, 2: the last, the first warp runs as far as barriers let it before the others; 3, 4: and copies come as late as they may.
static const int SKEWED=getenv("SSAMBA_SKEWED")?atoi(getenv("SSAMBA_SKEWED")):0;
static int NT; static ucontext_t mainc; static std::vector<ucontext_t> ctx; static std::vector<char*> stk;
static std::vector<int> state_; // 0 run 1 at block barrier 2 at warp barrier 3 done
static std::vector<float> xch; static int cur;
static void yield_(int st){ state_[cur]=st; swapcontext(&ctx[cur],&mainc); }
static void __syncthreads(){ yield_(1); }
static float __shfl_xor_sync(unsigned, float v, int w){ int me=cur; xch[me]=v; yield_(2); float r=xch[(me&~31)|((me&31)^w)]; yield_(2); return r; }
static void __syncwarp(){ yield_(2); }
static float __shfl_sync(unsigned, float v, int src, int width){ int me=cur; xch[me]=v; yield_(2); float r=xch[(me&~31)|((me&31)/width*width+src)]; yield_(2); return r; }
static float ex2(float v){ return exp2f(v);} static float lg2(float v){return log2f(v);} static float rcp(float v){return 1.0f/v;}
static float tanh_fast(float v){ int e; float m=frexpf(tanhf(v),&e); return ldexpf(roundf(m*2048.0f)/2048.0f,e);} // to 11 bits, as the unit
#if DTYPE==0
static float load(float v){return v;} static float pack(float v){return v;}
#else
static float load(unsigned short v){ uint32_t u=(uint32_t)v<<16; float f; memcpy(&f,&u,4); return f;}
static unsigned short pack(float f){ uint32_t u; memcpy(&u,&f,4); u+=0x7fff+((u>>16)&1); return u>>16;}
#endif
template<class F> void launch(int gx,int gy,int gz,int nt,F f);
static void (*entry_)(); static void tramp(){ entry_(); state_[cur]=3; swapcontext(&ctx[cur],&mainc); }
static void run_block(){
  for(int i=0;i<NT;i++){ getcontext(&ctx[i]); ctx[i].uc_stack.ss_sp=stk[i]; ctx[i].uc_stack.ss_size=65536; ctx[i].uc_link=&mainc; makecontext(&ctx[i],tramp,0); state_[i]=0; }
  while(1){ bool any=false, alldone=true;
    for(int n=0;n<NT;n+=32){ int w=SKEWED&1?(NT-1)/32*32-n:n, e=w+32<NT?w+32:NT; bool again=true;
      while(again){ again=false;
        for(int i=w;i<e;i++) if(state_[i]==0){ cur=i; threadIdx.x=i; swapcontext(&mainc,&ctx[i]); any=true; }
        bool all2=true; for(int i=w;i<e;i++) if(state_[i]!=2) all2=false; // release the warp
        if(all2){ for(int i=w;i<e;i++) state_[i]=0; any=true; again=SKEWED; } } }
    bool all1=true; for(int i=0;i<NT;i++){ if(state_[i]!=1) all1=false; if(state_[i]!=3) alldone=false; }
    if(alldone) return;
    if(all1){ for(int i=0;i<NT;i++) state_[i]=0; any=true; }
    if(!any) { fprintf(stderr,"DEADLOCK\n"); abort(); }
  }
}
static void go(int gx,int gy,int gz,int nt,void(*e)()){ NT=nt; ctx.resize(nt); while((int)stk.size()<nt) stk.push_back((char*)malloc(65536)); state_.assign(nt,0); xch.assign((nt+31)/32*32,0); entry_=e;
  for(int z=0;z<gz;z++)for(int y=0;y<gy;y++)for(int x=0;x<gx;x++){ blockIdx={x,y,z}; run_block(); } }

struct Copy { unsigned short*to; const unsigned short*from; int bytes; bool ok; void now(){ if(ok) memcpy(to,from,bytes); else memset(to,0,bytes); } };
static std::vector<Copy> open_[1024]; static std::vector<std::vector<Copy>> closed_[1024];
template<int BYTES> static void copy_later(unsigned short*to,const unsigned short*from,bool ok){ Copy c={to,from,BYTES,ok}; if(SKEWED<3) c.now(); else open_[cur].push_back(c); }
static void close_copies(){ closed_[cur].push_back(open_[cur]); open_[cur].clear(); }
template<int LEFT> static void await_copies(){ auto&all=closed_[cur]; while((int)all.size()>LEFT){ for(auto&c:all[0]) c.now(); all.erase(all.begin()); } }
typedef unsigned short*Row; static Row row_at(const unsigned short*at){ return (Row)at; } static Row ahead(Row row,int values){ return row+values; }
static uint2 make_uint2(unsigned x,unsigned y){ return {x,y}; }
// Matrices of 8 x 8: lane 8 i + k points at row k of matrix i.
template<int COUNT> static void matrices(unsigned*d,const unsigned short*row,bool turned){
  static const unsigned short*rows[1024]; int me=cur,w=me&~31,l=me&31; rows[me]=row; yield_(2);
  for(int i=0;i<COUNT;i++){ unsigned v[2]; for(int j=0;j<2;j++) v[j]=turned? rows[w+8*i+l%4*2+j][l/4] : rows[w+8*i+l/4][l%4*2+j]; d[i]=v[0]|v[1]<<16; }
  yield_(2); }
static void read4(unsigned*m,const unsigned short*row){ matrices<4>(m,row,false); }
static void read4_turned(unsigned*m,const unsigned short*row){ matrices<4>(m,row,true); }
static void read2_turned(unsigned*m,const unsigned short*row){ matrices<2>(m,row,true); }
static void read2(unsigned*m,const unsigned short*row){ matrices<2>(m,row,false); }
static unsigned turn(unsigned m){ static unsigned A[1024]; int me=cur,w=me&~31,l=me&31; A[me]=m; yield_(2);
  unsigned v[2]; for(int j=0;j<2;j++){ unsigned x=A[w+(l%4*2+j)*4+l/4/2]; v[j]=l/4%2?x>>16:x&0xffff; } yield_(2); return v[0]|v[1]<<16; }

#define SHARED_BYTES(name) alignas(16) static char name[300000]
static unsigned pack2(float a,float b){
#if DTYPE!=0
 return pack(a)|((unsigned)pack(b)<<16);
#else
 return 0;
#endif
}
#if DTYPE!=0
static void load_transposed(unsigned*m,const char*from){ // lane 8 i + k points at row k of matrix i
  static const char*at[1024]; int me=cur,w=me&~31,l=me&31; at[me]=from; yield_(2);
  for(int i=0;i<4;i++){ unsigned short v[2]; for(int j=0;j<2;j++) memcpy(&v[j],at[w+8*i+l%4*2+j]+l/4*2,2); m[i]=v[0]|(unsigned)v[1]<<16; }
  yield_(2); }
static void mma16816(float*d,unsigned a0,unsigned a1,unsigned a2,unsigned a3,unsigned b0,unsigned b1){
  static unsigned A[1024][6]; int me=cur,w=me&~31,l=me&31; unsigned v[6]={a0,a1,a2,a3,b0,b1}; for(int i=0;i<6;i++)A[me][i]=v[i]; yield_(2);
  auto el=[&](unsigned x,int hi){return load((unsigned short)(hi?x>>16:x&0xffff));};
  auto Aat=[&](int row,int k){int ln=(row%8)*4+(k%8)/2; int reg=(row>=8)+2*(k>=8); return el(A[w+ln][reg],k&1);};
  auto Bat=[&](int k,int n){int ln=n*4+(k%8)/2; return el(A[w+ln][4+(k>=8)],k&1);};
  for(int i=0;i<4;i++){int row=l/4+8*(i/2),col=(l%4)*2+(i&1); float s=0; for(int k=0;k<16;k++) s+=Aat(row,k)*Bat(k,col); d[i]+=s;}
  yield_(2); }
static void mma1688(float*d,unsigned a0,unsigned a1,unsigned b0){ // the inner dimension's upper half is zero
  mma16816(d,a0,a1,0,0,b0,0); }
static void product1688(float*d,unsigned a0,unsigned a1,unsigned b0){ d[0]=d[1]=d[2]=d[3]=0; mma1688(d,a0,a1,b0); }
#endif
