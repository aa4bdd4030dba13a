/* wsload: WebSocket fan-out load generator and sink (one thread, epoll, no
 * dependencies).  Opens N subscribers (plus P publishers) to one server on the
 * loopback range, joins, publishes open-loop (-r) or closed-loop (-w), counts
 * deliveries and reads a send timestamp out of each for latency percentiles.
 * Prints one JSON object.  Build: gcc -O2 -Wall -o wsload wsload.c
 * Options: wsload -h, or SERVER.md one folder up. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64; typedef uint32_t u32; typedef uint8_t u8;
enum { S_FREE, S_CONNECTING, S_HANDSHAKE, S_JOINING, S_OPEN, S_CLOSED };
typedef struct { int fd; u8 st, slow, pub, j2; int acks; u32 topic, idx;
                 u8 *part; u32 partlen, partcap; u8 *out; u32 outlen, outcap;
                 u64 rx; } conn;

static const char *host = "127.0.0.1", *path = "/", *join_t = "", *pubjoin_t = "", *join2_t = "", *puback = NULL,
  *pub_t = "{\"topic\":\"realtime:t%t\",\"event\":\"broadcast\",\"payload\":{\"type\":\"broadcast\",\"event\":\"x\",\"payload\":{\"s\":\"@@%T%P\"}},\"ref\":null}",
  *marker = "@@", *ackstr = NULL, *xhdr = "", *label = "", *hb_t = "";
static int port = 0, nconn = 100, ntopic = 1, maxhs = 128, npub = 1, pad = 0, nslow = 0, bymarker = 0,
  opbin = 0, nsrc = 1, rcvbuf = 0, verbose = 0, ackneed = -1, burst = 1;
static double rate = 0, dur = 3, warm = 1, settle = 0.2, jointmo = 90, hbsec = 0, drain = 0;
static int window = 0;
static char *pids = NULL; static int pidv[64], npid = 0, marklen;
static int ep; static conn *C; static int total;
static int started, inflight_hs, nopen, nclosed, nfailed, slowclosed;
static int *subs;            /* live counted subscribers per topic */
static u64 received, bytes_rx, frames_rx, published, expected, stalls, otherframes;
static int measuring; static u64 m_recv, m_bytes, m_pub;

static u64 now(void){ struct timespec t; clock_gettime(CLOCK_MONOTONIC,&t); return t.tv_sec*1000000000ull+t.tv_nsec; }
static void die(const char *m){ perror(m); exit(1); }

/* log-linear histogram: 64 sub-buckets per power of two, nanoseconds */
#define SUB 6
static u64 hist[64<<SUB]; static u64 hcount, hmax; static double hsum;
static inline void hadd(u64 v){ int b; if(v<(1u<<SUB)) b=v; else { int e=63-__builtin_clzll(v); b=((e-SUB+1)<<SUB)+((v>>(e-SUB))&((1<<SUB)-1)); }
  hist[b]++; hcount++; hsum+=v; if(v>hmax) hmax=v; }
static double hpct(double p){ if(!hcount) return 0; u64 want=(u64)(p*hcount); if(want>=hcount) want=hcount-1; u64 c=0;
  for(int b=0;b<(64<<SUB);b++){ c+=hist[b]; if(c>want){ if(b<(1<<SUB)) return b; int e=(b>>SUB)+SUB-1; u64 base=(1ull<<e)|((u64)(b&((1<<SUB)-1))<<(e-SUB)); return base+(1ull<<(e-SUB))/2.0; } } return hmax; }

/* -A FILE: %a is line i of it, such as a token for each connection */
static char **lines; static u32 nlines;
static void read_lines(const char *f){ FILE *F=fopen(f,"r"); char *l=NULL; size_t cap=0; ssize_t n; if(!F) die(f);
  while((n=getline(&l,&cap,F))>0){ if(l[n-1]=='\n') l[n-1]=0; if(strlen(l)>32768) continue;
    if(!(nlines&1023)) lines=realloc(lines,(nlines+1024)*sizeof *lines);
    lines[nlines++]=strdup(l); }
  free(l); fclose(F); }

/* %t topic, %i connection index, %a line of -A, %T 19-digit ns timestamp, %P padding, %%; \r \n \t \\ \xHH */
static u32 expand(const char *t, u32 topic, u32 idx, u8 *o, long *tsoff){
  u8 *s=o; if(tsoff) *tsoff=-1;
  for(;*t;t++){
    if(*t=='%'&&t[1]){ t++;
      if(*t=='t') o+=sprintf((char*)o,"%u",topic);
      else if(*t=='i') o+=sprintf((char*)o,"%u",idx);
      else if(*t=='a'){ if(nlines){ const char *l=lines[idx%nlines]; u32 k=strlen(l); memcpy(o,l,k); o+=k; } }
      else if(*t=='T'){ if(tsoff) *tsoff=o-s; memset(o,'0',19); o+=19; }
      else if(*t=='P'){ memset(o,'x',pad); o+=pad; }
      else *o++=*t;
    } else if(*t=='\\'&&t[1]){ t++;
      if(*t=='r') *o++='\r'; else if(*t=='n') *o++='\n'; else if(*t=='t') *o++='\t';
      else if(*t=='x'){ char h[3]={t[1],t[2],0}; *o++=strtol(h,0,16); t+=2; }
      else *o++=*t;
    } else *o++=*t;
  }
  return o-s;
}
static u32 frame(u8 *o, int op, const u8 *p, u32 n){ /* client frame, zero mask key */
  u8 *s=o; *o++=0x80|op;
  if(n<126) *o++=0x80|n; else if(n<65536){ *o++=0x80|126; *o++=n>>8; *o++=n; }
  else { *o++=0x80|127; for(int i=7;i>=0;i--) *o++=((u64)n)>>(8*i); }
  memset(o,0,4); o+=4; memmove(o,p,n); return o-s+n;
}
static void mod(conn *c, u32 ev){ struct epoll_event e={.events=ev,.data.ptr=c}; epoll_ctl(ep,EPOLL_CTL_MOD,c->fd,&e); }
static void cl(conn *c){ if(c->st==S_CLOSED||c->st==S_FREE) return;
  if(c->st<S_OPEN) { if(c->st<S_JOINING) inflight_hs--; nfailed++; }
  else { nclosed++; if(c->slow) slowclosed++; else if(!c->pub) subs[c->topic]--; }
  close(c->fd); c->st=S_CLOSED; }
static void put(conn *c, const u8 *p, u32 n){
  if(c->st==S_CLOSED) return;
  if(!c->outlen){ ssize_t r=send(c->fd,p,n,MSG_NOSIGNAL|MSG_DONTWAIT);
    if(r<0){ if(errno!=EAGAIN){ cl(c); return; } r=0; }
    p+=r; n-=r; if(!n) return; mod(c,EPOLLIN|EPOLLOUT); }
  if(c->outlen+n>c->outcap){ c->outcap=(c->outlen+n)*2; c->out=realloc(c->out,c->outcap); }
  memcpy(c->out+c->outlen,p,n); c->outlen+=n;
}
static void flush_out(conn *c){ if(!c->outlen) return; ssize_t r=send(c->fd,c->out,c->outlen,MSG_NOSIGNAL|MSG_DONTWAIT);
  if(r<0){ if(errno!=EAGAIN) cl(c); return; }
  memmove(c->out,c->out+r,c->outlen-r); c->outlen-=r; if(!c->outlen) mod(c,EPOLLIN); }

static void opened(conn *c){ c->st=S_OPEN; nopen++;
  if(c->pub) return;
  if(c->slow){ mod(c,EPOLLRDHUP); } else subs[c->topic]++; }
static void connect_one(conn *c){
  c->fd=socket(AF_INET,SOCK_STREAM|SOCK_NONBLOCK,0); if(c->fd<0) die("socket (ulimit -n?)");
  int one=1; setsockopt(c->fd,IPPROTO_TCP,TCP_NODELAY,&one,sizeof one);
  if(rcvbuf||c->slow){ int v=rcvbuf?rcvbuf:65536; setsockopt(c->fd,SOL_SOCKET,SO_RCVBUF,&v,sizeof v); }
  if(nsrc>1){ struct sockaddr_in s={.sin_family=AF_INET}; s.sin_addr.s_addr=htonl(0x7f000001u+(c->idx%nsrc));
    setsockopt(c->fd,SOL_IP,IP_BIND_ADDRESS_NO_PORT,&one,sizeof one); bind(c->fd,(void*)&s,sizeof s); }
  struct sockaddr_in a={.sin_family=AF_INET,.sin_port=htons(port)}; inet_pton(AF_INET,host,&a.sin_addr);
  c->st=S_CONNECTING; inflight_hs++;
  struct epoll_event e={.events=EPOLLIN|EPOLLOUT,.data.ptr=c};
  if(connect(c->fd,(void*)&a,sizeof a)<0&&errno!=EINPROGRESS){ cl(c); return; }
  epoll_ctl(ep,EPOLL_CTL_ADD,c->fd,&e);
}
#define HEAD (1<<20)
static u8 *rb; static u32 rbcap=HEAD+(1<<18);

static void do_join(conn *c){
  const char *t=c->pub?pubjoin_t:join_t; inflight_hs--; c->st=S_JOINING;
  mod(c,EPOLLIN);
  if(!*t||ackneed==0){ if(*t){ static u8 b[1<<16],f[1<<16]; u32 n=expand(t,c->topic,c->idx,b,0); put(c,f,frame(f,opbin?2:1,b,n)); }
    opened(c); return; }
  static u8 b[1<<16],f[1<<16]; u32 n=expand(t,c->topic,c->idx,b,0); put(c,f,frame(f,opbin?2:1,b,n));
}
static inline void take_ts(conn *c, const u8 *p, const u8 *e, u64 t){
  u64 v=0; const u8 *q=p; while(q<e&&*q>='0'&&*q<='9') v=v*10+*q++-'0';
  received++; c->rx++;
  if(measuring){ m_recv++; if(v) hadd(t>v?t-v:0); }
}
static void on_frame(conn *c, int op, u8 *p, u64 n, u64 t){
  if(op==9){ u8 f[160]; if(n>125) n=125; put(c,f,frame(f,10,p,n)); return; }
  if(op==8){ cl(c); return; }
  if(op==10) return;
  frames_rx++;
  if(c->st==S_JOINING){
    if(*join2_t&&!c->pub&&!c->j2&&memmem(p,n,"sid",3)&&p[0]=='4'){ static u8 b[4096],f[4200]; u32 k=expand(join2_t,c->topic,c->idx,b,0); c->j2=1; put(c,f,frame(f,opbin?2:1,b,k)); return; }
    const char *as=c->pub&&puback?puback:ackstr;
    if(as&&!memmem(p,n,as,strlen(as))){ otherframes++; return; }
    if(++c->acks>=ackneed) opened(c);
    return; }
  if(c->pub) return;
  static long lastoff; /* same offset as last time: no search */
  if(!bymarker){
    u8 *m=((u64)lastoff+marklen<=n&&!memcmp(p+lastoff,marker,marklen))?p+lastoff:memmem(p,n,marker,marklen);
    if(!m){ otherframes++; return; }
    lastoff=m-p; take_ts(c,m+marklen,p+n,t);
  } else { u8 *e=p+n,*m=p; while((m=memmem(m,e-m,marker,marklen))){ m+=marklen; take_ts(c,m,e,t); } }
}
static void on_read(conn *c){
  u8 *b=rb; u32 have=0;
  if(c->partlen){ memcpy(b,c->part,c->partlen); have=c->partlen; c->partlen=0; }
  ssize_t r=recv(c->fd,b+have,rbcap-have,0);
  if(r==0){ cl(c); return; }
  if(r<0){ if(errno!=EAGAIN&&errno!=EINTR){ cl(c); return; } r=0; }
  bytes_rx+=r; if(measuring) m_bytes+=r;
  u64 t=now(); u8 *p=b,*e=b+have+r;
  if(c->st==S_HANDSHAKE){
    u8 *h=memmem(p,e-p,"\r\n\r\n",4);
    if(h){ if(e-p<12||memcmp(p+9,"101",3)){ if(verbose||nfailed<3) fprintf(stderr,"handshake refused: %.*s\n",(int)(e-p>200?200:e-p),p); cl(c); return; }
      p=h+4; do_join(c); if(c->st==S_CLOSED) return; }
  }
  if(c->st>=S_JOINING) while(e-p>=2){
    u64 n=p[1]&127; u32 hl=2; if(n==126){ if(e-p<4) break; n=p[2]<<8|p[3]; hl=4; }
    else if(n==127){ if(e-p<10) break; n=0; for(int i=0;i<8;i++) n=n<<8|p[2+i]; hl=10; }
    if((u64)(e-p)<hl+n) break;
    on_frame(c,p[0]&15,p+hl,n,t); if(c->st==S_CLOSED) return;
    p+=hl+n; }
  if(p<e){ u32 n=e-p; if(n>HEAD){ fprintf(stderr,"frame over %d bytes\n",HEAD); cl(c); return; }
    if(n>c->partcap){ c->partcap=n*2; c->part=realloc(c->part,c->partcap); }
    memcpy(c->part,p,n); c->partlen=n; }
}
static void on_event(conn *c, u32 ev){
  if(c->st==S_CLOSED||c->st==S_FREE) return;
  if(c->st==S_CONNECTING){ int er=0; socklen_t l=sizeof er; getsockopt(c->fd,SOL_SOCKET,SO_ERROR,&er,&l);
    if(er){ if(verbose||nfailed<3) fprintf(stderr,"connect: %s\n",strerror(er)); cl(c); return; }
    if(!(ev&EPOLLOUT)) return;
    char q[4096]; static char pth[2048]; pth[expand(path,c->topic,c->idx,(u8*)pth,0)]=0;
    int n=snprintf(q,sizeof q,"GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n",pth,host,port,xhdr);
    c->st=S_HANDSHAKE; mod(c,EPOLLIN); put(c,(u8*)q,n); return; }
  if(c->slow&&c->st==S_OPEN){ cl(c); return; }
  if(ev&EPOLLOUT) flush_out(c);
  if(c->st!=S_CLOSED&&(ev&(EPOLLIN|EPOLLERR|EPOLLHUP|EPOLLRDHUP))) on_read(c);
}
static void poll_for(long ns){ static struct epoll_event ev[512];
  struct timespec ts={ns/1000000000,ns%1000000000};
  int k=epoll_pwait2(ep,ev,512,&ts,NULL); for(int i=0;i<k;i++) on_event(ev[i].data.ptr,ev[i].events); }

/* server cost: on-CPU ns of every thread, RSS/PSS in KiB */
static u64 proc_cpu(void){ u64 s=0; for(int i=0;i<npid;i++){ char d[64]; sprintf(d,"/proc/%d/task",pidv[i]); DIR *D=opendir(d); if(!D) continue;
    struct dirent *x; while((x=readdir(D))){ if(!isdigit(x->d_name[0])) continue; char f[400]; snprintf(f,sizeof f,"%s/%s/schedstat",d,x->d_name);
      FILE *F=fopen(f,"r"); unsigned long long v; if(F){ if(fscanf(F,"%llu",&v)==1) s+=v; fclose(F); } } closedir(D); } return s; }
static u64 proc_rss(void){ u64 s=0; for(int i=0;i<npid;i++){ char f[64],l[256]; sprintf(f,"/proc/%d/status",pidv[i]); FILE *F=fopen(f,"r"); if(!F) continue;
    while(fgets(l,sizeof l,F)){ unsigned long long v; if(sscanf(l,"VmRSS: %llu",&v)==1) s+=v; } fclose(F); } return s; }
static u64 slab(void){ FILE *F=fopen("/proc/meminfo","r"); char l[256]; unsigned long long v,s=0; if(!F) return 0; while(fgets(l,sizeof l,F)) if(sscanf(l,"Slab: %llu",&v)==1) s=v; fclose(F); return s; }
static double own_cpu(void){ struct rusage r; getrusage(RUSAGE_SELF,&r); return r.ru_utime.tv_sec+r.ru_stime.tv_sec+(r.ru_utime.tv_usec+r.ru_stime.tv_usec)/1e6; }

static u8 **pf; static u32 *pflen; static long *pfts; /* one ready frame per topic */
static u32 tnext; static int pnext;
static void publish(u64 stamp){
  u32 t=tnext++%ntopic; conn *p=NULL; for(int k=0;k<npub;k++){ p=&C[nconn+pnext++%npub]; if(p->st==S_OPEN) break; }
  if(!p||p->st!=S_OPEN) return;
  if(pfts[t]>=0){ u64 v=stamp; u8 *d=pf[t]+pfts[t]; for(int i=18;i>=0;i--){ d[i]='0'+v%10; v/=10; } }
  put(p,pf[t],pflen[t]); published++; expected+=subs[t]; if(measuring) m_pub++;
}
static void usage(void){ fputs(
"wsload -p PORT [-H 127.x.x.x] [-u PATH] [-n SUBSCRIBERS] [-T TOPICS] [-P PUBLISHERS]\n"
"  -j TPL  join sent by each subscriber     -q TPL  join sent by each publisher\n"
"  -k N    frames to wait for after a join (default 1 when -j is given, else 0)\n"
"  -a STR  only frames holding STR count as the reply to a join\n"
"  -m TPL  message to publish   -z N  length of %P   -K STR  marker before the timestamp (@@)\n"
"          templates: %t topic  %i connection  %a line of -A  %T 19-digit CLOCK_MONOTONIC ns  %P padding  \\r \\n \\xHH\n"
"  -r R    open loop: R publishes/s (stamped with the scheduled time), sent -B at a time\n"
"  -w W    closed loop: at most W publishes not yet delivered to every subscriber\n"
"          neither -r nor -w: only receive (the server publishes) or hold idle\n"
"  -W S warm-up  -d S measured time  -D S drain after  -s S settle after joining\n"
"  -S N    the first N subscribers never read (slow consumers; counted apart)\n"
"  -M      count marker occurrences, not frames (NATS, MQTT)   -b  binary frames\n"
"  -c N    handshakes in flight (128)  -I N  spread over N source addresses 127.0.0.1..\n"
"  -E HDR  extra request header line(s), e.g. 'apikey: x\\r\\n'   -R PID[,PID]  server processes to account\n"
"  -J TPL  second join, sent when a frame '4..sid..' arrives (socket.io: -j 40 -J '42[..]')   -Q STR  like -a, for publishers\n"
"  -A FILE lines for %a: connection i gets line i, and after the last one the first again\n"
"  -L LABEL  -g TPL -G S  heartbeat template and period (all subscribers)  -v\n",stderr); exit(2); }
static char *esc(const char *s){ char *o=malloc(strlen(s)+1); u32 n=expand(s,0,0,(u8*)o,0); o[n]=0; return o; }

int main(int ac,char **av){
  int o; while((o=getopt(ac,av,"A:p:H:u:n:T:P:j:q:k:a:m:z:K:r:w:W:d:D:s:S:Mbc:I:E:R:L:g:G:B:J:Q:vh"))!=-1) switch(o){
    case 'p': port=atoi(optarg); break; case 'A': read_lines(optarg); break; case 'H': host=optarg; break; case 'u': path=optarg; break;
    case 'n': nconn=atoi(optarg); break; case 'T': ntopic=atoi(optarg); break; case 'P': npub=atoi(optarg); break;
    case 'j': join_t=optarg; break; case 'q': pubjoin_t=optarg; break; case 'k': ackneed=atoi(optarg); break; case 'a': ackstr=optarg; break;
    case 'm': pub_t=optarg; break; case 'z': pad=atoi(optarg); break; case 'K': marker=optarg; break;
    case 'r': rate=atof(optarg); break; case 'w': window=atoi(optarg); break; case 'W': warm=atof(optarg); break;
    case 'd': dur=atof(optarg); break; case 'D': drain=atof(optarg); break; case 's': settle=atof(optarg); break; case 'S': nslow=atoi(optarg); break;
    case 'M': bymarker=1; break; case 'b': opbin=1; break; case 'c': maxhs=atoi(optarg); break; case 'I': nsrc=atoi(optarg); break;
    case 'E': xhdr=esc(optarg); break; case 'R': pids=strdup(optarg); break; case 'L': label=optarg; break;
    case 'J': join2_t=optarg; break; case 'Q': puback=optarg; break;
    case 'g': hb_t=optarg; break; case 'G': hbsec=atof(optarg); break; case 'B': burst=atoi(optarg); break;
    case 'v': verbose=1; break; default: usage(); }
  if(!port) usage();
  if(strncmp(host,"127.",4)){ fputs("only 127.0.0.0/8\n",stderr); return 2; }
  if(ackneed<0) ackneed=*join_t?1:0;
  if(pids) for(char *t=strtok(pids,",");t&&npid<64;t=strtok(0,",")) pidv[npid++]=atoi(t);
  marklen=strlen(marker); signal(SIGPIPE,SIG_IGN);
  struct rlimit rl; getrlimit(RLIMIT_NOFILE,&rl); rl.rlim_cur=rl.rlim_max; setrlimit(RLIMIT_NOFILE,&rl);
  total=nconn+npub; if((rlim_t)total+16>rl.rlim_max){ fprintf(stderr,"needs ulimit -n over %d\n",total); return 2; }
  C=calloc(total,sizeof *C); subs=calloc(ntopic,sizeof *subs); rb=malloc(rbcap); ep=epoll_create1(0);
  for(int i=0;i<total;i++){ C[i].idx=i; C[i].topic=i%ntopic; C[i].slow=i<nslow; C[i].pub=i>=nconn; }
  pf=calloc(ntopic,sizeof *pf); pflen=calloc(ntopic,sizeof *pflen); pfts=calloc(ntopic,sizeof *pfts);
  for(int t=0;t<ntopic;t++){ u32 cap=strlen(pub_t)+pad+256; u8 *b=malloc(cap); u32 n=expand(pub_t,t,0,b,&pfts[t]);
    pf[t]=malloc(n+16); pflen[t]=frame(pf[t],opbin?2:1,b,n); if(pfts[t]>=0) pfts[t]+=pflen[t]-n; free(b); }
  u64 rss0=proc_rss(), slab0=slab();
  /* connect and join */
  u64 t0=now(), cpuA=proc_cpu();
  while(nopen+nfailed+nclosed<total){
    while(started<total&&inflight_hs<maxhs) connect_one(&C[started++]);
    poll_for(100000000); if((now()-t0)/1e9>jointmo){ fprintf(stderr,"join timeout: open %d failed %d of %d\n",nopen,nfailed,total); break; } }
  double tconn=(now()-t0)/1e9; u64 cpuB=proc_cpu();
  u64 te=now()+(u64)(settle*1e9); while(now()<te) poll_for(20000000);
  u64 rss1=proc_rss(), slab1=slab(), rssmax=rss1;
  /* run */
  u64 start=now(), mstart=start+(u64)(warm*1e9), end=mstart+(u64)(dur*1e9), tsched=start, lastprog=start, lastrecv=0, hbat=start;
  u64 hbpos=0; u64 c0=0,c1=0; double o0=0; u64 ms=0; u64 step=rate>0?(u64)(1e9*burst/rate):0; double lagmax=0; u64 rsst=start;
  static u8 hbb[4096],hbf[4200];
  for(;;){ u64 t=now();
    if(!measuring&&t>=mstart){ measuring=1; c0=proc_cpu(); o0=own_cpu(); ms=t=now(); end=t+(u64)(dur*1e9); memset(hist,0,sizeof hist); hcount=hmax=0; hsum=0; m_recv=m_bytes=m_pub=0; }
    if(measuring&&t>=end) break;
    if(t-rsst>250000000){ rsst=t; u64 r=proc_rss(); if(r>rssmax) rssmax=r; }
    long wait=50000000;
    if(rate>0){ int k=0; while(tsched<=t&&k++<64){ double lag=(t-tsched)/1e6; if(measuring&&lag>lagmax) lagmax=lag; for(int b=0;b<burst;b++) publish(tsched); tsched+=step; }
      wait=tsched>t?(long)(tsched-t):0; }
    else if(window>0){ int perw=nconn-nslow; u64 per=perw/ntopic; if(!per) per=1;
      while(expected<received+per*(u64)window) { u64 e0=expected; publish(now()); if(expected==e0) break; }
      if(received!=lastrecv){ lastrecv=received; lastprog=t; } else if(t-lastprog>1000000000){ stalls++; expected=received; lastprog=t; }
      wait=200000000; }
    if(hbsec>0&&*hb_t){ u64 due=(u64)((t-hbat)/1e9/hbsec*nconn); int k=0; while(hbpos<due&&k++<64){ conn *c=&C[hbpos++%nconn]; if(c->st==S_OPEN&&!c->slow){ u32 n=expand(hb_t,c->topic,c->idx,hbb,0); put(c,hbf,frame(hbf,opbin?2:1,hbb,n)); } } if(wait>1000000) wait=1000000; }
    if(measuring&&end>t&&(u64)wait>end-t) wait=end-t;
    if(!measuring&&mstart>t&&(u64)wait>mstart-t) wait=mstart-t;
    poll_for(wait); }
  c1=proc_cpu(); double el=(now()-ms)/1e9, oc=own_cpu()-o0; measuring=0; u64 rss2=proc_rss(); if(rss2>rssmax) rssmax=rss2;
  u64 de=now()+(u64)(drain*1e9); while(now()<de&&received<expected) poll_for(10000000);
  u64 minrx=~0ull,maxrx=0; for(int i=nslow;i<nconn;i++){ if(C[i].rx<minrx) minrx=C[i].rx; if(C[i].rx>maxrx) maxrx=C[i].rx; }
  double cpu=(c1-c0)/1e9;
  printf("{\"label\":\"%s\",\"n\":%d,\"topics\":%d,\"open\":%d,\"failed\":%d,\"closed\":%d,\"slow\":%d,\"slow_closed\":%d,\"connect_s\":%.3f,\"conn_per_s\":%.0f,\"conn_cpu_us\":%.1f,"
    "\"published\":%llu,\"pub_per_s\":%.1f,\"deliveries\":%llu,\"dps\":%.0f,\"mbps\":%.1f,\"dur\":%.3f,"
    "\"p50_us\":%.0f,\"p90_us\":%.0f,\"p99_us\":%.0f,\"p999_us\":%.0f,\"max_us\":%.0f,\"mean_us\":%.0f,\"pub_lag_max_ms\":%.2f,"
    "\"srv_cpu\":%.3f,\"srv_us_per_delivery\":%.3f,\"own_cpu\":%.3f,\"own_us_per_delivery\":%.3f,"
    "\"rss0_kb\":%llu,\"rss_joined_kb\":%llu,\"rss_max_kb\":%llu,\"rss_end_kb\":%llu,\"kb_per_conn\":%.2f,\"slab_kb_per_conn\":%.2f,"
    "\"undelivered\":%lld,\"stalls\":%llu,\"other_frames\":%llu,\"rx_min\":%llu,\"rx_max\":%llu}\n",
    label,nconn,ntopic,nopen,nfailed,nclosed,nslow,slowclosed,tconn,nopen/tconn,nopen?(cpuB-cpuA)/1e3/nopen:0,
    (unsigned long long)m_pub,m_pub/el,(unsigned long long)m_recv,m_recv/el,m_bytes/el/1e6,el,
    hpct(.5)/1e3,hpct(.9)/1e3,hpct(.99)/1e3,hpct(.999)/1e3,hmax/1e3,hcount?hsum/hcount/1e3:0,lagmax,
    cpu/el,m_recv?cpu*1e6/m_recv:0,oc/el,m_recv?oc*1e6/m_recv:0,
    (unsigned long long)rss0,(unsigned long long)rss1,(unsigned long long)rssmax,(unsigned long long)rss2,nopen?(double)((long long)rss1-(long long)rss0)/nopen:0,nopen?(double)((long long)slab1-(long long)slab0)/nopen:0,
    (long long)(expected-received),(unsigned long long)stalls,(unsigned long long)otherframes,(unsigned long long)minrx,(unsigned long long)maxrx);
  for(int i=0;i<total;i++) if(C[i].st!=S_CLOSED&&C[i].st!=S_FREE){ struct linger l={1,0}; setsockopt(C[i].fd,SOL_SOCKET,SO_LINGER,&l,sizeof l); close(C[i].fd); }
  return nopen<total; }
